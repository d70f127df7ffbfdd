"""Requests to train and test on: from events, or as they were logged."""
