"""Other fronts of the same registry: asv (history per commit) and pytest-benchmark (the local loop)."""
