"""What exists: methods, tasks, suites, and the registry that finds them. Imports neither torch nor triton."""
