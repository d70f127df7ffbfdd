"""Decoders that others wrote, in the place of our own."""
