"""What the CPU kernels share: vector instructions written from Python, compiled by LLVM, run on threads."""
