"""What things cost: prediction, training, retrieval, and how cost grows with the number of tasks."""
