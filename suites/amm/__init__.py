"""Run-time side of the suite of approximate products: data, features, oracle, gate."""
