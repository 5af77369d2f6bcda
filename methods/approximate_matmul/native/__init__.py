"""C++ kernels of tree-encoded products: codes, exact 16-bit sums and the fused product on the CPU.

``binding`` is the public door; ``build`` compiles on demand; the sources stand beside this file.
"""
