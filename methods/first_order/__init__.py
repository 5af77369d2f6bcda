"""First-order optimizers: the methods of the task ``training`` that use gradients alone.

Every method is a factory ``make(model, **hyper) -> torch.optim.Optimizer``. Importing this package imports no torch.
"""
