"""CUDA C++ kernels, compiled on the user's machine at first use: the sources, the compiler, the launch."""
