"""Training workloads: one torch-free descriptor a file; data streams, nets and runtimes import torch when measured."""
