"""Fused operators: one folder each, with schema and dispatch, a C++ path for CPUs, a Triton kernel for GPUs."""
