"""Training to a target: one run (``loop``), its clock, its checkpoints, and the executor that interleaves arms."""
