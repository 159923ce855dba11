"""Makers of test videos: codecs, rotation, odd sizes, uneven timing, and every kind of damage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

ENCODERS = {
    "h264": ("libx264", "yuv420p", {"preset": "ultrafast", "crf": "12", "bf": "2", "g": "12", "threads": "1"}),
    "hevc": ("libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:crf=12"}),
    "hevc10": ("libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:crf=12"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "threads": "1"}),
    "av1": ("libsvtav1", "yuv420p", {"preset": "12", "crf": "25", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", "yuv420p", {"q": "3", "g": "12"}),
    "mjpeg": ("mjpeg", "yuvj420p", {"q": "3"}),
}


def numbered_frames(num_frames: int, size: tuple[int, int] = (64, 64), first: int = 0) -> np.ndarray:
    """Frames that carry their own number as ten bars, readable after lossy coding; uint8 [T, H, W, 3]."""
    width, height = size
    number = np.arange(first, first + num_frames)
    bits = (number[:, None] >> np.arange(10)) & 1  # [T, 10]
    bar = np.minimum(np.arange(width) * 10 // width, 9)
    grey = np.where(bits[:, bar], 220, 35).astype(np.uint8)  # [T, W]
    return np.broadcast_to(grey[:, None, :, None], (num_frames, height, width, 3)).copy()


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that `numbered_frames` wrote."""
    columns = frames.mean(axis=(1, 3))  # [T, W]
    width = columns.shape[1]
    centres = ((np.arange(10) + 0.5) * width / 10).astype(int)
    return [int(sum(1 << i for i in range(10) if row[centres[i]] > 128)) for row in columns]


def encode(
    path: Path,
    codec: str = "h264",
    *,
    frames: np.ndarray | int = 20,
    size: tuple[int, int] = (64, 64),
    fps: int = 25,
    rotation: int = 0,
    uneven: bool = False,
    faststart: bool = False,
) -> Path:
    """Write a real video; the container follows the suffix of `path`.

    Parameters
    ----------
    codec
        A key of `ENCODERS`.
    frames
        uint8 [T, H, W, 3], or a number of numbered frames.
    size
        (width, height) of numbered frames.
    rotation
        Degrees counter-clockwise that a player turns the picture, written as a display matrix.
    uneven
        Variable frame rate: the gaps between frames change from frame to frame.
    faststart
        Puts the index of an mp4 in front, so that a truncated file still opens.
    """
    images = numbered_frames(frames, size) if isinstance(frames, int) else frames
    name, pix_fmt, options = ENCODERS[codec]
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with _usual_scheduling(), av.open(str(path), "w", options=flags) as container:
        stream: Any = container.add_stream(name, rate=fps)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = dict(options)
        tick = Fraction(1, 1000) if uneven else Fraction(1, fps)
        stream.codec_context.time_base = tick
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = round(index * 1000 / fps) + (index % 3) * 7 if uneven else index
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        _write_display_matrix(path, rotation)
    return path


@contextmanager
def _usual_scheduling() -> Iterator[None]:
    """Run as root, the AV1 encoder makes the calling thread real-time, and with it every process started later."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _write_display_matrix(path: Path, rotation: int) -> None:
    """Patch the rotation into the track header of an mp4 (no muxer option of PyAV sets it)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    version = data[at]
    matrix = at + (4 + 32 if version else 4 + 20) + 8 + 8
    one = 1 << 16
    turns = {90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}
    a, b, c, d = turns[rotation % 360]
    for offset, value in ((0, a), (4, b), (12, c), (16, d)):
        data[matrix + offset : matrix + offset + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def audio_only(path: Path) -> Path:
    """A second of silence without any picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def image_folder(path: Path, num_frames: int, size: tuple[int, int] = (64, 64), suffix: str = ".png") -> Path:
    """A folder of frames named 1, 2, ... 10, 11: only a natural sort puts them in order."""
    path.mkdir(parents=True)
    for index, image in enumerate(numbered_frames(num_frames, size)):
        cv2.imwrite(str(path / f"{index + 1}{suffix}"), image[..., ::-1])
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    """Keep the first `share` of the bytes."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


def flip_bytes(path: Path, rng: np.random.Generator, count: int = 20, start: float = 0.0) -> Path:
    """Overwrite `count` random bytes behind `start` (a share of the file)."""
    data = np.fromfile(path, np.uint8)
    at = rng.integers(int(start * len(data)), len(data), count)
    data[at] = rng.integers(0, 256, count)
    data.tofile(path)
    return path


def cut(path: Path, rng: np.random.Generator) -> Path:
    """Take a random stretch out of the file."""
    data = path.read_bytes()
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    path.write_bytes(data[:a] + data[b:])
    return path


def splice(path: Path, rng: np.random.Generator) -> Path:
    """Copy a random stretch of the file over another place of it."""
    data = bytearray(path.read_bytes())
    length = int(rng.integers(1, max(2, len(data) // 4)))
    source, target = rng.integers(0, len(data) - length + 1, 2).tolist()
    data[target : target + length] = data[source : source + length]
    path.write_bytes(data)
    return path


def mutate(path: Path, rng: np.random.Generator) -> Path:
    """One random kind of damage."""
    kind = rng.integers(4)
    if kind == 0:
        return flip_bytes(path, rng, int(rng.integers(1, 60)))
    if kind == 1:
        return cut(path, rng)
    if kind == 2:
        return splice(path, rng)
    return truncate(path, float(rng.uniform(0.05, 0.98)))
