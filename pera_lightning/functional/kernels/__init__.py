"""Fused kernels for CUDA GPUs, in Triton; nothing here imports it before a kernel is needed."""
