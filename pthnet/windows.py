"""Which 16 frames make a window, which windows make a level, and which segment of a long clip holds them.

A window is 16 consecutive frames. The three levels are grids of stride 4, 8 and 16 over the same clip. Under the cover
rule the coarser grids are subsets of the finest, so a clip is extracted once and the levels are positions in that list.
Everything here is arithmetic on frame counts: nothing is decoded, and torch is not imported.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pthnet.errors import ModelError

WINDOW = 16
STRIDES = {"high": 4, "middle": 8, "low": 16}
SLOTS = {"high": 16, "middle": 8, "low": 4}
LEVELS = ("high", "middle", "low")
DIRECTIONS = ("forward", "reverse")
TAILS = ("cover", "drop")


@dataclass(frozen=True)
class Pyramid:
    """The windows of a clip (or of one of its segments) in one direction.

    Attributes
    ----------
    starts : int32 [n]
        First frame of every window, ascending, counted in the direction's frame order over the whole clip.
    high, middle, low : int32 [n_level]
        Positions into `starts` of the windows of each level, ascending.
    """

    starts: np.ndarray
    high: np.ndarray
    middle: np.ndarray
    low: np.ndarray

    def level(self, name: str) -> np.ndarray:
        """Positions into `starts` of the level "high", "middle" or "low"."""
        if name not in LEVELS:
            raise ModelError(f"level must be one of {', '.join(LEVELS)}; found {name!r}")
        positions: np.ndarray = getattr(self, name)
        return positions


def window_starts(num_frames: int, stride: int, tail: str = "cover") -> np.ndarray:
    """First frames of the windows of a clip.

    The cover rule gives ``ceil((F - 16) / stride) + 1`` windows, the last one clamped to ``F - 16``: every frame is
    covered and none repeated. The drop rule takes the floor and leaves the tail out. A clip of 16 frames or fewer has
    one window.

    Parameters
    ----------
    num_frames : int
        Frames in the clip, at least 1.
    stride : int
        Frames between two windows, at least 1. Every frame is covered while it is at most 16.
    tail : {"cover", "drop"}

    Returns
    -------
    int64 [n]

    Raises
    ------
    ModelError
        For a clip without frames, a stride below 1, or an unknown tail rule.
    """
    _check(num_frames, tail)
    if stride < 1:
        raise ModelError(f"a window stride is at least 1 frame; found {stride}")
    return _starts_between(num_frames, stride, tail, 0, _last_start(num_frames) + 1)


def pyramid(num_frames: int, tail: str = "cover") -> Pyramid:
    """All windows of a clip, each once, and the positions of the three levels among them.

    The reversed direction of a clip has the same pyramid, read over the reversed frame order.
    """
    _check(num_frames, tail)
    return _pyramid_between(num_frames, tail, 0, _last_start(num_frames) + 1)


def segments(num_frames: int, max_frames: int) -> list[tuple[int, int]]:
    """Cut a clip into segments of a bounded number of frames.

    A segment owns the windows whose forward start lies in its range. Ranges are multiples of 16 frames long
    (`max_frames` rounded down), so that no segment is left without a window in either direction; the last one also
    takes the 15 frames at the end of the clip in which no window can start. Decoding a segment never needs more than
    ``max_frames + 15`` frames.

    Parameters
    ----------
    num_frames : int
        Frames in the clip, at least 1.
    max_frames : int
        Most frames a segment may own, at least 16.

    Returns
    -------
    list of (first, end)
        Half-open ranges of forward frames that partition the clip.
    """
    length = _segment_length(num_frames, max_frames)
    count = _last_start(num_frames) // length + 1
    edges = [i * length for i in range(count)] + [num_frames]
    return list(pairwise(edges))


def segment_windows(
    num_frames: int,
    segment: int,
    num_segments: int,
    max_frames: int,
    tail: str = "cover",
    direction: str = "forward",
) -> tuple[Pyramid, tuple[int, int]]:
    """The windows a segment owns, and the frames it must decode for them.

    Parameters
    ----------
    num_frames, max_frames : int
        As given to `segments`.
    segment, num_segments : int
        Which segment of how many; checked against what `segments` plans.
    tail : {"cover", "drop"}
    direction : {"forward", "reverse"}
        The order in which starts are counted.

    Returns
    -------
    Pyramid
        Starts counted over the whole clip, level positions counted within the segment.
    (first, end)
        Half-open range of forward frames to decode: the segment's own and up to 15 after them. The same for both
        directions, so that frames are decoded once.

    Raises
    ------
    ModelError
        When the clip does not fall into `num_segments` segments: its plan was made for another frame count.
    """
    _check(num_frames, tail)
    if direction not in DIRECTIONS:
        raise ModelError(f"direction must be forward or reverse; found {direction!r}")
    length = _segment_length(num_frames, max_frames)
    last = _last_start(num_frames)
    expected = last // length + 1
    if num_segments != expected or not 0 <= segment < num_segments:
        raise ModelError(
            f"{num_frames} frames in segments of at most {max_frames} make {expected} segments; "
            f"found segment {segment} of {num_segments}. Plan the clip again"
        )
    first = segment * length
    end = min(first + length, last + 1)  # forward starts the segment owns
    if direction == "forward":
        owned = _pyramid_between(num_frames, tail, first, end)
    else:
        owned = _pyramid_between(num_frames, tail, last + 1 - end, last + 1 - first)
    return owned, (first, min(end - 1 + WINDOW, num_frames))


def frame_indices(starts: np.ndarray, num_frames: int, reverse: bool = False, first: int = 0) -> np.ndarray:
    """Which decoded frames make up each window.

    Parameters
    ----------
    starts : int [n]
        Window starts in the direction's frame order, counted over the whole clip.
    num_frames : int
        Frames in the whole clip; below 16 the last frame (of the direction) is repeated.
    reverse : bool
        Windows of the reversed clip: window r shows frames ``F-1-r, F-2-r, ...``.
    first : int
        Forward number of the first decoded frame, taken off the result.

    Returns
    -------
    int64 [n, 16]
    """
    order = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(WINDOW)
    order = np.minimum(order, num_frames - 1)
    if reverse:
        order = num_frames - 1 - order
    return order - first


def __getattr__(name: str) -> Any:
    # Slots belong to the reader of windows; the name is kept here too, without loading torch for those who only plan.
    if name == "sample_slots":
        from pthnet.slots import sample_slots

        return sample_slots
    raise AttributeError(f"module 'pthnet.windows' has no attribute {name!r}")


def _check(num_frames: int, tail: str) -> None:
    if num_frames < 1:
        raise ModelError(f"a clip needs at least 1 frame to have a window; found {num_frames}")
    if tail not in TAILS:
        raise ModelError(f"tail must be cover or drop; found {tail!r}")


def _last_start(num_frames: int) -> int:
    return max(num_frames - WINDOW, 0)


def _segment_length(num_frames: int, max_frames: int) -> int:
    _check(num_frames, "cover")
    if max_frames < WINDOW:
        raise ModelError(f"a segment must hold at least one window of {WINDOW} frames; found max_frames={max_frames}")
    return max_frames // WINDOW * WINDOW


def _starts_between(num_frames: int, stride: int, tail: str, low: int, high: int) -> np.ndarray:
    """The starts of a clip's grid that lie in [low, high), without building the rest of the grid."""
    last = _last_start(num_frames)
    starts = np.arange(-(-low // stride) * stride, min(high, last + 1), stride, dtype=np.int64)
    if tail == "cover" and last % stride and low <= last < high:
        starts = np.append(starts, last)
    return starts


def _pyramid_between(num_frames: int, tail: str, low: int, high: int) -> Pyramid:
    grids = {level: _starts_between(num_frames, STRIDES[level], tail, low, high) for level in LEVELS}
    union = np.unique(np.concatenate(list(grids.values())))
    positions = {level: np.searchsorted(union, grid).astype(np.int32) for level, grid in grids.items()}
    return Pyramid(starts=union.astype(np.int32), **positions)
