"""The frozen vision transformer: its weights, batches of pixels, and the outputs of its trunk on disk."""
