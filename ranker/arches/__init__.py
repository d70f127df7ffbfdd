"""The parts of the ranker, each named by its role."""
