"""Errors of remote tasks as the errors they are."""

from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = "\nFailed to apply UDF transform after"  # Ray Data appends to a message how it might have tried again


@contextmanager
def causes() -> Iterator[None]:
    """Raise what a remote task raised instead of Ray's account of it, which stays behind it as its cause.

    So a caller can tell a full disk, which a user puts right, from a bug, wherever it happened.
    """
    from ray.exceptions import RayTaskError, UserCodeException

    try:
        yield
    except (RayTaskError, UserCodeException) as error:
        inner: BaseException | None = error
        while isinstance(inner, RayTaskError | UserCodeException):
            inner = (inner.cause if isinstance(inner, RayTaskError) else None) or inner.__cause__
        if inner is None:
            raise
        if inner.args and isinstance(inner.args[0], str):
            inner.args = (inner.args[0].partition(ADVICE)[0], *inner.args[1:])
        raise inner from error
