"""The answers that are not predictions: every error status that the server gives on purpose."""

from __future__ import annotations

from components.errors import IntaglioError

RETRY_SECONDS = 1  # that clients of an overloaded server should wait, in Retry-After


class RequestError(IntaglioError):
    """A request that gets no prediction."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        """Describe the error.

        Args:
            status: of the HTTP answer.
            message: one line for the client.
            retry_after: seconds after which the same request may succeed; None where it cannot.
        """
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def overloaded(limit: int) -> RequestError:
    """Return a 503: as many images as the server holds at a time are waiting already."""
    return RequestError(503, f"overloaded: {limit} images are waiting already; try again later", RETRY_SECONDS)


def unavailable(why: str) -> RequestError:
    """Return a 503: there is no model yet, or the server is about to end."""
    return RequestError(503, f"not ready: {why}; try again later", RETRY_SECONDS)


def too_large(limit: int) -> RequestError:
    """Return a 413: the body has more bytes than the server reads."""
    return RequestError(413, f"the request's body is larger than {limit} bytes; send fewer or smaller images")


def too_many(limit: int) -> RequestError:
    """Return a 413: one request has more images than the server holds at a time."""
    return RequestError(413, f"the request has more than {limit} images; send them in several requests")


def too_slow(seconds: float) -> RequestError:
    """Return a 408: the body did not arrive in time."""
    return RequestError(408, f"the request's body did not arrive within {seconds:g} seconds")


def malformed(why: str) -> RequestError:
    """Return a 400: the body is not what its content type says."""
    return RequestError(400, why)


def unsupported(content_type: str, expected: str) -> RequestError:
    """Return a 415: a content type that the server does not read."""
    return RequestError(415, f"content type {content_type[:80]!r}: expected {expected}")
