"""The stream's tasks: how one is added, and what must hold before a run."""
