"""What the stored runs say: a pure function of runs and claims. Imports neither torch nor triton."""
