"""Measurements that need the pipeline around them: the laboratory's grid, and the server under load."""
