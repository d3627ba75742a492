"""What depends on what: dvc.yaml, resolved into ordered stages, and those that changed."""
