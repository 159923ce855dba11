"""A clip as a local path for as long as decoders need it; S3 is asked once for all segments of a long video."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from storage import files
from storage.copies import local_copy
from storage.errors import Unreadable

# Full disk, too many open files, no memory: every clip would fail, and none of them is to blame.
OWN_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class _Kept:
    """A fetched clip that several segments share."""

    def __init__(self, key: tuple[str, str | None], kind: str) -> None:
        self.key = key
        self.users = 0
        self.copy = ExitStack()
        self.path = self.copy.enter_context(local_copy(key[0], kind, content=key[1]))


class LocalClips:
    """Opens clips; keeps the newest copy of a long S3 clip until another one is asked for."""

    def __init__(self) -> None:
        self._newest: _Kept | None = None

    @contextmanager
    def opened(self, uri: str, kind: str, content: str | None, *, in_segments: bool = False) -> Iterator[str]:
        """A local path of the clip. A local file is checked again at the end: it must still be what was planned.

        Raises
        ------
        Unreadable
            kind missing, changed, access_denied, or unreachable (S3 gave no answer in all its retries).
        """
        if in_segments and files.is_s3(uri):
            with self._shared((uri, content), kind) as path:
                yield path
            return
        with ExitStack() as stack:
            with reachable(uri):
                path = stack.enter_context(local_copy(uri, kind, content=content))
            yield path

    @contextmanager
    def _shared(self, key: tuple[str, str | None], kind: str) -> Iterator[str]:
        kept = self._newest
        if kept is None or kept.key != key:
            self.close()
            with reachable(key[0]):
                kept = self._newest = _Kept(key, kind)
        kept.users += 1
        try:
            yield kept.path
        finally:
            kept.users -= 1
            if kept.users == 0 and kept is not self._newest:
                kept.copy.close()

    def close(self) -> None:
        """Drop the kept copy once nobody reads it."""
        kept, self._newest = self._newest, None
        if kept is not None and kept.users == 0:
            kept.copy.close()


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn what keeps this one clip from being read into Unreadable; this machine's own trouble stays an exception."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise Unreadable("missing", f"{uri} is not there any more") from None
        if isinstance(error, PermissionError):
            raise Unreadable("access_denied", f"{uri}: permission denied") from None
        own = isinstance(error, OSError) and error.errno in OWN_TROUBLE
        if own or not (isinstance(error, OSError) or files.is_s3(uri)):
            raise
        # The client has retried for minutes. One broken object must not stop the others, so this is the clip's failure.
        raise Unreadable("unreachable", f"{uri}: {files.scrub(str(error))[:300]}") from None
