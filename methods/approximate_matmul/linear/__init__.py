"""Exact, quantised, sketched and low-rank products: everything that is linear in A up to rounding."""
