"""CUDA C++ kernels, compiled on the user's machine at the first use: sources, compilation and launch."""
