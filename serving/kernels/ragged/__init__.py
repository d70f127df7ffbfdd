"""What the GPU kernels over ragged rows share."""
