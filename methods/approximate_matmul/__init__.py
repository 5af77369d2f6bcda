"""Approximate matrix products: A B estimated from A's training distribution and a fixed B.

Vector quantisation (MADDNESS, Bolt, product quantisation) lives here, sketches and low rank in ``linear``, C++ kernels
in ``native``, Triton kernels in ``gpu``. Importing this package imports no torch.
"""
