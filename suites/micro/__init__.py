"""asv's and pytest-benchmark's door: every case of the registry. Public names here are candidates for asv."""
