"""Which 16 frames of a clip EC-STFL looks at: 8 segments of 2 consecutive frames."""

import numpy as np

from pthnet.errors import ModelError

SEGMENTS = 8
CONSECUTIVE = 2


def snippet_offsets(num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """First frame of each of the 8 snippets.

    Parameters
    ----------
    num_frames
        Length of the clip, n >= 1.
    rng
        Draws the training offsets: one inside each of 8 equal segments of (n - 1) // 8 frames; clips of up to 8 frames
        start all snippets at 0. None: evaluation, the middle of each segment, 0 for n <= 9.

    Returns
    -------
    int64 [8], ascending.
    """
    if num_frames < 1:
        raise ModelError(f"a clip has at least one frame, found {num_frames}")
    last = num_frames - CONSECUTIVE + 1
    if rng is None:
        if num_frames <= SEGMENTS + CONSECUTIVE - 1:
            return np.zeros(SEGMENTS, np.int64)
        tick = last / SEGMENTS
        return np.array([int(tick / 2 + tick * i) for i in range(SEGMENTS)], np.int64)
    # the published rule's third case, sorted random offsets for n > 8 with an empty segment, cannot occur
    average = last // SEGMENTS
    if average == 0:
        return np.zeros(SEGMENTS, np.int64)
    return np.arange(SEGMENTS) * average + rng.integers(average, size=SEGMENTS)


def snippet_frames(num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Frame numbers int64 [16] of a clip: each offset p gives p and p + 1, held at the last frame."""
    offsets = snippet_offsets(num_frames, rng)
    return np.minimum(offsets[:, None] + np.arange(CONSECUTIVE), num_frames - 1).reshape(-1)
