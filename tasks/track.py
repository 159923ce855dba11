"""One clip over time: what pictures, overlays and the page draw."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tasks.score import ClipScores  # brings torch, which those who only draw do without


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is known of one clip over time.

    Attributes
    ----------
    clip, label : str
    confidence : float
    classes : tuple of str [C]
    starts, ends : int64 [W]
        Frames of the windows.
    fused, forward, reverse : float32 [W, C]
        Probabilities of the windows; a direction that the model lacks is None.
    contribution : float32 [W]
        See `tasks.score`.
    rate : float
        Frames a second, 0 when the clip has none.
    """

    clip: str
    label: str
    confidence: float
    classes: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    fused: np.ndarray
    forward: np.ndarray | None
    reverse: np.ndarray | None
    contribution: np.ndarray
    rate: float

    @property
    def centres(self) -> np.ndarray:
        """Middle frame of every window, float64 [W]."""
        return (self.starts + self.ends - 1) / 2

    def at(self, frame: float) -> np.ndarray:
        """Fused probabilities [C] at a frame, linear between the middles of windows."""
        centres = self.centres
        after = int(np.searchsorted(centres, frame))
        if after in (0, len(centres)):
            return self.fused[min(after, len(centres) - 1)]
        share = (frame - centres[after - 1]) / max(centres[after] - centres[after - 1], 1e-9)
        return (1 - share) * self.fused[after - 1] + share * self.fused[after]


def track_of(scores: "ClipScores", index: int, classes: tuple[str, ...]) -> Track:
    """The track of clip `index` of the scores; arrays are copies, so that the scores can go."""
    stretch = slice(int(scores.offsets[index]), int(scores.offsets[index + 1]))
    shares = scores.clip["fused"][index]
    directed = {
        name: scores.window[name][stretch].copy() if name in scores.window else None for name in ("forward", "reverse")
    }
    return Track(
        clip=scores.clip_ids[index],
        label=classes[int(shares.argmax())],
        confidence=float(shares.max()),
        classes=classes,
        starts=scores.starts[stretch].copy(),
        ends=scores.ends[stretch].copy(),
        fused=scores.window["fused"][stretch].copy(),
        contribution=scores.contribution[stretch].copy(),
        rate=float(scores.fps[index]),
        **directed,
    )
