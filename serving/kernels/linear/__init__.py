"""Linear layers inside the kernels: packed weights, and rows times panels."""
