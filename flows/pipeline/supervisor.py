"""Run a command that ends with its owner. A script of its own: it must start in milliseconds, so it imports little.

    leash.py COMMAND ARGUMENT...

The owner holds the other end of our standard input, and ends the command by closing it. However the owner dies,
SIGKILL included, the kernel closes that end for it. DVC itself does not take its stages with it when it is killed:
a stage would go on writing, and the next run would start a second writer beside it.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    """Run the command in this process group; returns its exit status, unless the owner lets go first."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # If even the leash is killed, its owner too, the kernel ends the command.
    bind = functools.partial(libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL) if libc else None
    command = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, preexec_fn=bind)
    let_go = threading.Event()
    end = threading.Thread(target=_end_when_let_go, args=(command, let_go), daemon=True)
    end.start()
    status = command.wait()
    if let_go.is_set():
        end.join()
    return status if status >= 0 else 128 - status


def _end_when_let_go(command: "subprocess.Popen[bytes]", let_go: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    let_go.set()
    os.killpg(os.getpgrp(), signal.SIGTERM)
    try:
        command.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
    # Reaped here: where nobody else reaps, DVC takes its own zombie for a process that still holds its locks.
    command.wait()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command; we stay to the end
    sys.exit(main(sys.argv[1:]))
