"""Approximate products on NVIDIA GPUs: Triton kernels of MADDNESS, and the model of when they can win.

``model`` needs neither torch nor triton; importing this package imports neither.
"""
