"""Run a command that ends when the process that started it ends. A script: it must start in milliseconds.

    supervisor.py COMMAND ARGUMENT...

The starting process holds the other end of our standard input, and ends the command by closing it. However it dies,
SIGKILL included, the kernel closes that end for it. DVC itself leaves its stages running when it is killed: a stage
would go on writing, and the next run would start a second writer beside it.
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
    """Run the command in this process group; return its exit status, unless standard input closes first."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # If even this process is killed, together with the one that started it, the kernel ends the command.
    bind = functools.partial(libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL) if libc else None
    command = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, preexec_fn=bind)
    closed = threading.Event()
    end = threading.Thread(target=_end_when_closed, args=(command, closed), daemon=True)
    end.start()
    status = command.wait()
    if closed.is_set():
        end.join()
    return status if status >= 0 else 128 - status


def _end_when_closed(command: "subprocess.Popen[bytes]", closed: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    closed.set()
    os.killpg(os.getpgrp(), signal.SIGTERM)
    try:
        command.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
    # Reaped here: where no init does, DVC takes its own zombie for a process that still holds its locks.
    command.wait()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command; this process stays to the end
    sys.exit(main(sys.argv[1:]))
