"""The profile step: a plain decoder over new tokens beside stored keys and values, and over branches."""
