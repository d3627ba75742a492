"""Run a command that dies with its owner. A script of its own: it must start in milliseconds, so it imports little.

    leash.py COMMAND ARGUMENT...

The owner holds the other end of our standard input. However it dies, SIGKILL included, the kernel closes that end; we
read the end of the file and kill. DVC itself does not take its stages with it when it is killed, so a stage would
go on writing, and the next run would start a second writer beside it.
"""

import os
import signal
import subprocess
import sys
import threading


def _kill_group_when_owner_is_gone() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command in this process group; returns its exit status."""
    threading.Thread(target=_kill_group_when_owner_is_gone, daemon=True).start()
    status = subprocess.call(arguments, stdin=subprocess.DEVNULL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # SIGTERM is for the command; we live on to report how it ended.
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(main(sys.argv[1:]))
