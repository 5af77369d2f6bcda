"""Matrix orthogonalization: the polar factor by Newton-Schulz iterations (Muon's inner loop)."""
