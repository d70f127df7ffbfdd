"""Candidate scoring in one pass; its reference is `ranker.arches.interaction.Interaction`."""
