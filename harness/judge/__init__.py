"""What stored runs mean: statistics, claims with their verdicts, regressions."""
