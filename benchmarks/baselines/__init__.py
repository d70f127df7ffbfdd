"""What people would pick instead of the fused kernels, each in a process of its own."""
