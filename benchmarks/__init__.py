"""Measurements: latency of the ranking model, in process and served, and the demo that runs every job once."""

import foundation  # noqa: F401  # first, since it sets what torch reads as it is loaded
