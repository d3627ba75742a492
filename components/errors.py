"""The errors that a user can act on. Everything else is a bug and keeps its stack trace."""

import errno
import os
from pathlib import Path

TRY_AGAIN = 75  # exit status of a stage that stands for TransientError: EX_TEMPFAIL of sysexits.h
ABANDONED = 76  # the same for PeersLostError: EX_PROTOCOL
_SPACE, _RIGHTS = "free some space", "make it writable"
DISK_FAULTS = {  # faults of the disk -> what a person can do
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "check the disk",
}


class IntaglioError(Exception):
    """Bad input or a broken artefact: the message says what, where and what to do, in one line."""


class TransientError(IntaglioError):
    """A fault that a retry may cure, such as a registry that did not answer."""


class PeersLostError(Exception):
    """Another process of a shared training ended. It has said why; there is nothing to add."""


def disk_error(path: Path, error: OSError) -> IntaglioError:
    """What to tell a person about a fault in DISK_FAULTS; `path` is named where the error names no file."""
    number = error.errno or 0
    return IntaglioError(
        f"{error.filename or path}: {os.strerror(number).lower()}; {DISK_FAULTS[number]} and run again: "
        "whatever had finished is kept"
    )
