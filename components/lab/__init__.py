"""The laboratory: methods of continual learning compared on the same streams, embeddings and splits."""
