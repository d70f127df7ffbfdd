"""Losses, optimizers, sharding and the run of co-training."""
