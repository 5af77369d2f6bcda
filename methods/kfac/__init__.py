"""Kronecker-factored curvature: layers, statistics, damping and inverses that its whole family stands on."""
