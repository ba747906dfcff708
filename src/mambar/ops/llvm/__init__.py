"""Shared code of the CPU kernels: LLVM vector instructions built in Python, compiled by llvmlite, run on threads."""
