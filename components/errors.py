"""Errors that a user can act on. Everything else is a bug and keeps its stack trace."""

import errno
import os
from pathlib import Path

# Exit statuses of a stage's process, by the names of sysexits.h.
TRY_AGAIN = 75  # TransientError: EX_TEMPFAIL
ABANDONED = 76  # PeersLostError: EX_PROTOCOL

_SPACE, _RIGHTS = "free some space", "make it writable"
DISK_FAULTS = {  # errno of a fault of the disk -> its remedy
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "check the disk",
}


class IntaglioError(Exception):
    """Bad input or a broken artefact: the message names what, where and the remedy, in one line."""


class TransientError(IntaglioError):
    """A fault that a retry may cure, such as a registry that did not answer."""


class PeersLostError(Exception):
    """Another process of a shared training ended. That process reports the reason; this one adds nothing."""


def disk_error(path: Path, error: OSError) -> IntaglioError:
    """Turn a fault of the disk, one of DISK_FAULTS, into an error that names its remedy.

    Args:
        path: the file that was being written, named where `error` names none.
        error: the fault.
    """
    number = error.errno or 0
    return IntaglioError(
        f"{error.filename or path}: {os.strerror(number).lower()}; {DISK_FAULTS[number]} and run again: "
        "whatever had finished is kept"
    )
