"""Decode a segment of a clip in a killable child with a deadline; whatever goes wrong comes back as a value.

>>> with DecodePool(workers=2, timeout_s=60) as pool:                                                   # doctest: +SKIP
...     decoded = pool.decode([DecodeRequest(uri="a.mp4", kind="video", size=(224, 224))])
"""

import os
import select
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from storage.clips import frame_names
from storage.errors import Unreadable
from tasks.clip_file import LocalClips, reachable
from tasks.decode_child import Answer, DecodeChild

READER = "tasks.decode_worker:read"
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """Which frames of which clip, and how large.

    Attributes
    ----------
    uri, kind
        Local path or S3 URI of a "video", a folder of "frames" or an "image".
    content
        Fingerprint the clip was planned with; None: not checked.
    first, last
        Half-open range of frames; last None: to the end.
    num_frames
        Frames the clip was planned with; another number found is a failure. None: not known.
    size
        (width, height) the frames are resized to, bilinear; None: native.
    max_frames
        More frames than this fail rather than fill the memory.
    """

    uri: str
    kind: str = "video"
    content: str | None = None
    first: int = 0
    last: int | None = None
    num_frames: int | None = None
    size: tuple[int, int] | None = None
    max_frames: int = 1024


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The frames of one request, or why there are none.

    Attributes
    ----------
    frames
        uint8 RGB [T, H, W, 3]; None where status is "failed".
    num_frames
        Frames of the whole clip.
    width, height
        Of the video as shown, before resizing.
    kind
        None, or decode_error, decode_crash, decode_timeout, no_video_stream, empty, missing, changed,
        frame_count_mismatch, out_of_memory, access_denied, unreachable.
    seconds
        From request to answer, fetching from S3 included.
    """

    frames: np.ndarray | None = field(default=None, repr=False)
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    decoder: str = ""
    status: str = "ok"
    kind: str | None = None
    detail: str | None = None
    seconds: float = 0.0


@dataclass
class _Job:
    """A request that a child is working on."""

    index: int
    request: DecodeRequest
    child: DecodeChild
    clip: ExitStack
    began: float


class DecodePool:
    """Children that decode side by side.

    Parameters
    ----------
    workers
        Number of child processes.
    timeout_s
        Seconds a child may work on one request before it is killed.
    memory_bytes
        Memory a child may map beyond its libraries; more is kind out_of_memory.
    max_bytes
        Most bytes of frames one request may return.
    reader
        "module:function" that reads in the child: (request, sink) -> num_frames, fps, decoder.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_s: float = 120.0,
        memory_bytes: int = 2 * GIB,
        max_bytes: int = GIB,
        reader: str = READER,
    ) -> None:
        self.timeout_s, self.max_bytes = timeout_s, max_bytes
        self._children = [DecodeChild(memory_bytes, reader) for _ in range(workers)]
        self._clips = LocalClips()
        self._end = weakref.finalize(self, _close, self._children, self._clips)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children."""
        self._end()

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """Decode every request; the results are in their order. A request that fails leaves the others alone."""
        results: list[Decoded | None] = [None] * len(requests)
        waiting = deque(enumerate(requests))
        idle = list(self._children)
        busy: dict[int, _Job] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    index, request = waiting.popleft()
                    started = self._begin(index, request, idle[-1])
                    if isinstance(started, Decoded):
                        results[index] = started
                    else:
                        busy[idle.pop().sock.fileno()] = started
                for job, answer in self._finished(busy):
                    results[job.index] = self._result(job, answer)
                    idle.append(job.child)
        finally:
            for job in busy.values():  # only when interrupted: Ctrl-C, or a bug
                job.child.give_up(0)
                with suppress(Unreadable):
                    job.clip.close()
        return [result for result in results if result is not None]

    def _begin(self, index: int, request: DecodeRequest, child: DecodeChild) -> _Job | Decoded:
        began = time.monotonic()
        clip = ExitStack()
        in_segments = request.num_frames is not None
        try:
            path = clip.enter_context(
                self._clips.opened(request.uri, request.kind, request.content, in_segments=in_segments)
            )
            with reachable(request.uri):
                if os.path.isfile(path) and os.path.getsize(path) == 0:
                    raise Unreadable("empty", f"{request.uri} has no bytes")
                words = _words(request, path)
            child.ask({**words, "max_bytes": self.max_bytes}, self.timeout_s)
        except Unreadable as error:
            with suppress(Unreadable):
                clip.close()
            return Decoded(status="failed", kind=error.kind, detail=str(error), seconds=time.monotonic() - began)
        except BaseException:
            with suppress(Unreadable):
                clip.close()
            raise
        return _Job(index, request, child, clip, began)

    def _finished(self, busy: dict[int, _Job]) -> list[tuple[_Job, Answer]]:
        """Wait until at least one child has answered, died or run out of time."""
        if not busy:
            return []
        poll = select.poll()
        for fd in busy:
            poll.register(fd, select.POLLIN)
        nearest = min(job.child.deadline for job in busy.values())
        ready = {fd for fd, _ in poll.poll(max(0.0, nearest - time.monotonic()) * 1000 + 1)}
        finished = []
        for fd, job in list(busy.items()):
            if fd in ready:
                finished.append((busy.pop(fd), job.child.answer()))
            elif job.child.deadline <= time.monotonic():
                finished.append((busy.pop(fd), job.child.give_up(self.timeout_s)))
        return finished

    def _result(self, job: _Job, answer: Answer) -> Decoded:
        words = answer.words
        try:
            job.clip.close()
        except Unreadable as error:  # replaced while it was read: the frames may belong to neither version
            words = {"status": "failed", "kind": error.kind, "detail": str(error)}
        seconds = time.monotonic() - job.began
        if words["status"] == "failed":
            return Decoded(status="failed", kind=words["kind"], detail=words["detail"], seconds=seconds)
        height, width = words["native"]
        return Decoded(
            frames=answer.frames,
            num_frames=words["num_frames"],
            fps=words["fps"],
            width=width,
            height=height,
            decoder=words["decoder"],
            seconds=seconds,
        )


def _words(request: DecodeRequest, path: str) -> dict[str, Any]:
    """The request as the child understands it. Of a folder it gets the names it shall read, in order."""
    words: dict[str, Any] = {
        "path": path,
        "kind": request.kind,
        "first": request.first,
        "last": request.last,
        "num_frames": request.num_frames,
        "size": request.size,
        "max_frames": request.max_frames,
    }
    if request.kind == "frames":
        names = frame_names(os.listdir(path))
        words["total"] = len(names)
        words["names"] = names[request.first : request.last][: request.max_frames + 1]
    return words


def _close(children: list[DecodeChild], clips: LocalClips) -> None:
    for child in children:
        child.close()
    clips.close()


def decode_segment(
    uri: str,
    kind: str = "video",
    *,
    first: int = 0,
    last: int | None = None,
    size: tuple[int, int] | None = None,
    timeout_s: float = 120.0,
    content: str | None = None,
    max_frames: int = 1024,
) -> Decoded:
    """Decode one segment in a child started for it; for more than one use a DecodePool, which keeps its children.

    Parameters and result as in DecodeRequest and Decoded.
    """
    request = DecodeRequest(
        uri=uri, kind=kind, content=content, first=first, last=last, size=size, max_frames=max_frames
    )
    with DecodePool(timeout_s=timeout_s) as pool:
        return pool.decode([request])[0]
