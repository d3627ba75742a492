"""What a task leaves for evaluation and for updates, so that neither needs an image of it again."""
