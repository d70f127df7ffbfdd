"""Pooled embeddings of padded id columns; the reference is `ranker.arches.sparse.PaddedSparseArch`."""
