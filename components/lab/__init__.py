"""The laboratory: methods of continual learning compared on streams of real images, on the same embeddings and splits."""
