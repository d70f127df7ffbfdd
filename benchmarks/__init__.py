"""Measurements: latency of the ranking model, in process and served, and the demo that runs every job once."""
