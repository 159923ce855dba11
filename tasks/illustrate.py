"""The pictures of one clip: thumbnail, timeline and overlay video, each made once and found again by its name.

Runs in a worker process of its own: what a damaged video does to its decoder stays there.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from storage.errors import Unreadable
from tasks.footage import Footage, footage
from tasks.overlay import write_overlay
from tasks.timeline import save_timeline
from tasks.track import Track

THUMBNAILS = 8  # in a timeline
THUMBNAIL_HEIGHT = 96


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where a clip's pictures lie, relative to the folder of the predictions; "" where there is none.

    Attributes
    ----------
    thumbnail, timeline, overlay : str
    problem : str
        Why a picture is missing.
    """

    thumbnail: str = ""
    timeline: str = ""
    overlay: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """One clip to illustrate.

    Attributes
    ----------
    track : Track
    uri, kind, content : str
        As in CLIPS.
    folder : str
        Of the predictions.
    model : str
        Digest of what was predicted with: another model makes other pictures.
    timeline, overlay : bool
        Which are wanted.
    """

    track: Track
    uri: str
    kind: str
    content: str
    folder: str
    model: str
    timeline: bool = True
    overlay: bool = True

    @property
    def name(self) -> str:
        """File name without suffix: readable, and another one for another clip, content or model."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.track.clip).strip("-.")[-60:]
        told = "\0".join((self.track.clip, self.content, self.model))
        return f"{readable}-{hashlib.blake2b(told.encode('utf-8', 'surrogateescape'), digest_size=5).hexdigest()}"

    def wanted(self) -> dict[str, str]:
        """Picture -> its path relative to the folder."""
        found = {"thumbnail": f"thumbnails/{self.name}.jpg"}
        if self.timeline:
            found["timeline"] = f"timelines/{self.name}.png"
        if self.overlay and self.kind != "image":
            found["overlay"] = f"overlays/{self.name}.mp4"
        return found

    def missing(self) -> list[str]:
        """Pictures that are not there yet."""
        return [picture for picture, path in self.wanted().items() if not (Path(self.folder) / path).exists()]


def illustrate(job: PictureJob) -> Pictures:
    """Make the clip's missing pictures, reading its frames once; what cannot be made is said, not raised."""
    wanted, missing = job.wanted(), job.missing()
    problem = ""
    if missing:
        for path in wanted.values():
            (Path(job.folder) / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            _make(job, missing)
        except (Unreadable, OSError, ValueError) as error:
            problem = str(error)
    there = {picture: path for picture, path in wanted.items() if (Path(job.folder) / path).exists()}
    return Pictures(**there, problem=problem)


def _make(job: PictureJob, missing: list[str]) -> None:
    folder, wanted = Path(job.folder), job.wanted()
    sampler = _Sampler(int(job.track.ends.max()))
    with footage(job.uri, job.kind) as opened:
        seen = Footage(sampler.watch(opened.frames), opened.rate)
        if "overlay" in missing:
            write_overlay(seen, job.track, folder / wanted["overlay"])
        else:
            for _ in seen.frames:
                if sampler.done:
                    break
    if "thumbnail" in missing and sampler.kept:
        _save_jpeg(sampler.kept[len(sampler.kept) // 2], folder / wanted["thumbnail"])
    if "timeline" in missing:
        save_timeline(job.track, sampler.kept, folder / wanted["timeline"])


class _Sampler:
    """Keeps small copies of a few frames at even distances as they pass by."""

    def __init__(self, num_frames: int) -> None:
        count = min(THUMBNAILS, num_frames)
        self._wanted = set(np.linspace(0, num_frames - 1, 2 * count + 1)[1::2].round().astype(int).tolist())
        self._last = max(self._wanted)
        self.kept: list[np.ndarray] = []
        self.done = False

    def watch(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames):
            if number in self._wanted:
                self.kept.append(_small(frame))
            self.done = number >= self._last
            yield frame


def _small(frame: np.ndarray) -> np.ndarray:
    import cv2

    height, width = frame.shape[:2]
    return cv2.resize(
        frame, (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA
    )


def _save_jpeg(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    from storage.files import write_atomic

    packed = BytesIO()
    Image.fromarray(picture).save(packed, format="jpeg", quality=72)
    write_atomic(str(path), packed.getvalue())


def illustrate_all(jobs: list[PictureJob], *, workers: int, told: Callable[[], None] = lambda: None) -> list[Pictures]:
    """Illustrate many clips side by side; a worker that dies or hangs costs its own clip only.

    Parameters
    ----------
    jobs
        Clips.
    workers
        Processes.
    told
        Called after each clip.
    """
    from multiprocessing import get_context

    from pebble import ProcessExpired, ProcessPool

    results: dict[int, Pictures] = {}
    waiting = {}
    for index, job in enumerate(jobs):
        if job.missing():
            waiting[index] = job
        else:
            results[index] = illustrate(job)
    if waiting:
        # Spawned, not forked: this process may hold Ray's and torch's threads.
        pool = ProcessPool(max_workers=max(1, min(workers, len(waiting))), context=get_context("spawn"))
        try:
            futures = {i: pool.schedule(illustrate, args=(job,), timeout=_patience(job)) for i, job in waiting.items()}
            for index, future in futures.items():
                try:
                    results[index] = future.result()
                except (ProcessExpired, TimeoutError) as error:
                    results[index] = Pictures(problem=f"drawing it failed: {type(error).__name__} {error}".strip())
                told()
        finally:
            pool.stop()  # all is done, or we were interrupted
            pool.join()
    return [results[index] for index in range(len(jobs))]


def _patience(job: PictureJob) -> float:
    """Seconds until a clip's worker is given up: generous, and in proportion to its length."""
    return 120 + float(job.track.ends.max()) * 0.5
