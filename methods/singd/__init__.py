"""SINGD: structured, inverse-free natural gradient descent in every structure, with INGD and IKFAC."""
