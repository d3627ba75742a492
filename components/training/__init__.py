"""One task to one module: the loop, what it keeps for a restart, and how processes share it."""
