"""The console command: one module for each group of commands."""

from flows.cli.app import main, run_command

__all__ = ["main", "run_command"]
