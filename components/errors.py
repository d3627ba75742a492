"""The errors that a user can act on. Everything else is a bug and keeps its stack trace."""


class IntaglioError(Exception):
    """Bad input or a broken artefact: the message says what, where and what to do, in one line."""


class TransientError(IntaglioError):
    """A fault that a retry may cure, such as a registry that did not answer."""
