"""What the header of a clip says about it: frames, rate and size, without decoding."""

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from storage import files
from storage.clips import frame_names
from storage.errors import Unreadable
from tasks.clip_file import LocalClips
from tasks.decode_child import DecodeChild

PROBE_SECONDS = 60.0
COUNT_SECONDS = 600.0  # counting reads the whole file
MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Length, rate and size of a clip; num_frames is 0 where it cannot be read.

    Attributes
    ----------
    width, height
        As coded, before any rotation.
    exact
        Whether num_frames was counted rather than taken from the header.
    """

    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    exact: bool = False


def probe(uri: str, kind: str = "video", *, exact: bool = False) -> Probe:
    """Look at a clip. What is wrong with it is no error here: num_frames is 0, and decoding it will say.

    Parameters
    ----------
    uri, kind
        Local path or S3 URI of a "video", a folder of "frames" or an "image".
    exact
        Count the frames of a video from its packets (reads the file once, decodes nothing). Otherwise the number comes
        from the header, or from duration and rate where the header has none, and may be off.
    """
    if kind == "image":
        return Probe(num_frames=1, exact=True)
    try:
        if kind == "frames":
            return Probe(num_frames=len(frame_names(_names(uri))), exact=True)
        if files.is_s3(uri) and not exact:
            return _look(uri, exact=False)  # the child reads what it needs of the header by ranges
        with LocalClips().opened(uri, kind, None) as path:
            return _look(path, exact=exact)
    except (Unreadable, OSError):
        return Probe()


def _names(uri: str) -> list[str]:
    if files.is_s3(uri):
        return [entry.path for entry in files.walk(uri) if "/" not in entry.path]
    return os.listdir(files.local_path(uri))


# Demuxers crash and hang on damaged headers as decoders do on frames, so headers are read in a child too.
_one_at_a_time = threading.Lock()


@lru_cache(maxsize=1)
def _child(environment: frozenset[tuple[str, str]]) -> DecodeChild:
    """The child that has this environment: where S3 is follows the parent's, which may change."""
    return DecodeChild(MEMORY_BYTES, "tasks.decoders:look")


def _look(path: str, *, exact: bool) -> Probe:
    seconds = COUNT_SECONDS if exact else PROBE_SECONDS
    request: dict[str, Any] = {"path": path, "exact": exact, "size": None, "max_frames": 0, "max_bytes": 0}
    with _one_at_a_time:
        environment = frozenset((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))
        words = _child(environment).call(request, seconds).words
    if words["status"] == "failed":
        return Probe()
    return Probe(**{name: words[name] for name in ("num_frames", "fps", "width", "height", "exact")})
