"""The low-rank mathematics: what a module is, how it is trained into a layer, how many run in one pass."""
