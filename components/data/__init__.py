"""Images into a task: folders and packages to a manifest, its splits, and the checks that it must pass."""
