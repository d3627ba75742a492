"""One task -> one module: the training loop, its state and checkpoints, its recorded step, and shared training."""
