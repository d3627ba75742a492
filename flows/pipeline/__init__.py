"""One run: the stages of dvc.yaml in order, each in a process that cannot outlive it, and what follows them."""
