"""A local copy of a clip, checked against the content that was planned: what a decoder opens."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from storage import files
from storage.clips import frame_names, frames_content, sha256_content
from storage.errors import Unreadable
from storage.files import ATTEMPTS, Entry
from storage.refusals import is_refusal

_BLOCK = 1 << 20  # bytes held while an object is downloaded


@contextmanager
def local_copy(uri: str, kind: str = "video", *, content: str | None = None) -> Iterator[str]:
    """A local path that holds the clip while the context lasts: the file itself, or a temporary copy from S3.

    Parameters
    ----------
    uri
        The clip; with kind "frames" a folder or prefix, and the path yielded is a folder.
    content
        The fingerprint that was planned; the clip must have it before and after it was read.

    Raises
    ------
    Unreadable
        kind "missing", "changed" or "access_denied".
    """
    if not files.is_s3(uri):
        path = files.local_path(uri)
        _check_local(path, kind, content)
        yield path
        if content is not None and not content.startswith("sha256:"):
            _check_local(path, kind, content)
        return
    folder = tempfile.mkdtemp(prefix="clip-")
    try:
        try:
            path = _fetch_frames(uri, folder, content) if kind == "frames" else _fetch(uri, folder, content)
        except Unreadable:
            raise
        except Exception as error:
            if is_refusal(error):
                raise Unreadable("access_denied", f"{uri}: S3 refused to give this object") from None
            raise
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def content_of(path: str, kind: str, like: str = "") -> str:
    """Fingerprint of a local clip as it is now, in the form of another one.

    Raises
    ------
    Unreadable
        kind "missing" or "access_denied".
    """
    try:
        if like.startswith("sha256:"):
            return sha256_content(path, kind)
        if kind != "frames":
            stat = os.stat(path)
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        with os.scandir(path) as entries:
            kept = {entry.name: entry.stat() for entry in entries}
        return frames_content(Entry(n, kept[n].st_size, str(kept[n].st_mtime_ns)) for n in frame_names(kept))
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("missing", f"{path} is not there any more") from None
    except PermissionError:
        raise Unreadable("access_denied", f"{path}: permission denied") from None


def _check_local(path: str, kind: str, content: str | None) -> None:
    now = content_of(path, kind, content or "")
    if kind != "frames" and not os.access(path, os.R_OK):
        raise Unreadable("access_denied", f"{path}: permission denied")
    if content is not None and now != content:
        raise Unreadable("changed", f"{path} changed since it was planned ({content} then, {now} now)")


def _fetch(uri: str, folder: str, content: str | None) -> str:
    bucket, key = files.split_s3(uri)
    # The name is kept for its suffix; some demuxers look at it.
    path = os.path.join(folder, f"clip{os.path.splitext(key)[1]}")
    _download(uri, bucket, key, path, content.rpartition("-")[0] if content else None)
    return path


def _fetch_frames(uri: str, folder: str, content: str | None) -> str:
    bucket, prefix = files.split_s3(uri.rstrip("/"))
    entries = {entry.path: entry for entry in files.walk(uri) if "/" not in entry.path}
    names = frame_names(entries)
    if not names:
        raise Unreadable("missing", f"{uri} holds no frames any more")
    if content is not None and (now := frames_content(entries[name] for name in names)) != content:
        raise Unreadable("changed", f"{uri} changed since it was planned ({content} then, {now} now)")
    for name in names:
        _download(f"{uri}/{name}", bucket, f"{prefix}/{name}", os.path.join(folder, name), entries[name].tag)
    return folder


def _download(uri: str, bucket: str, key: str, path: str, etag: str | None) -> None:
    """Copy an object block by block; a lost connection goes on where it stopped, if the object is the same."""
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

    done, whole = 0, None
    with open(path, "wb") as file:
        for attempt in range(ATTEMPTS):
            try:
                options: dict[str, Any] = {"Range": f"bytes={done}-"} if done else {}
                answer = files.s3_client().get_object(Bucket=bucket, Key=key, **options)
                now = answer["ETag"].strip('"')
                if etag is not None and now != etag:
                    raise Unreadable("changed", f"{uri} changed since it was planned (ETag {etag} then, {now} now)")
                etag = now
                whole = done + answer["ContentLength"] if whole is None else whole
                for block in answer["Body"].iter_chunks(_BLOCK):
                    file.write(block)
                    done += len(block)
                if done >= whole:
                    return
            except ClientError as error:
                if files.is_missing(error):
                    raise Unreadable("missing", f"{uri} is not there any more") from None
                raise
            except (HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS - 1:
                    raise
            time.sleep(min(0.1 * 2**attempt, 5.0))
    raise OSError(f"{uri}: the connection ended {ATTEMPTS} times before the last byte ({done} of {whole})")
