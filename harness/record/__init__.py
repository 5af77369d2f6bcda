"""What is kept: one line per run, with its status, its reason and its raw samples."""
