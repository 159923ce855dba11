"""The frames of a clip at their own size, one by one, for pictures and videos made of them; memory does not grow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from storage.clips import frame_names
from storage.copies import local_copy
from storage.errors import Unreadable
from tasks.decoders import opened, picture_stream, upright

STILL_RATE = Fraction(25)  # frames in a folder have no rate of their own; they are shown at this one


@dataclass(frozen=True)
class Footage:
    """An opened clip.

    Attributes
    ----------
    frames : iterator of uint8 [H, W, 3]
        RGB, upright.
    rate : Fraction
        Frames a second.
    """

    frames: Iterator[np.ndarray]
    rate: Fraction


@contextmanager
def footage(uri: str, kind: str) -> Iterator[Footage]:
    """Open a local or S3 clip of any kind.

    Raises
    ------
    Unreadable
        When it is gone or holds no video.
    """
    with local_copy(uri, kind) as path:
        if kind != "video":
            files = [Path(path)] if kind == "image" else [Path(path) / name for name in frame_names(_names(path))]
            yield Footage(_images(files), STILL_RATE)
            return
        with opened(path) as container:
            stream = picture_stream(container)
            if stream is None:
                raise Unreadable("no_video_stream", f"{uri} has no video stream")
            rate = stream.average_rate or stream.guessed_rate or STILL_RATE
            try:
                yield Footage((upright(frame) for frame in container.decode(stream)), Fraction(rate))
            except av.error.FFmpegError as error:
                raise Unreadable("decode_error", f"{uri}: {error}") from error


def _names(path: str) -> list[str]:
    return [entry.name for entry in Path(path).iterdir()]


def _images(files: list[Path]) -> Iterator[np.ndarray]:
    for file in files:
        image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise Unreadable("decode_error", f"{file.name} is not a readable image")
        yield image
