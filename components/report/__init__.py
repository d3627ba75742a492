"""One self-contained page with everything that a run produced."""
