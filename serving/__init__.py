"""Export, Triton Server, client and fused kernels of the ranker."""
