"""Ragged attention over stored and new keys and values, on GPUs; on CPUs it is a part of the decoder's step."""
