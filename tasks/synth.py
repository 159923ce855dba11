"""A synthetic labelled archive, clip by clip: the plan of every clip from a seed, and its H.264 file."""

import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tasks.face import CLASSES, Difficulty, clip_frames

_SIDES = (96, 112, 128, 144, 160)
_RATES = (15, 24, 25, 30)


@dataclass(frozen=True, kw_only=True)
class SynthClip:
    """One planned clip. All follows from (seed, index), so growing an archive leaves its older clips as they were."""

    seed: int
    index: int
    difficulty: Difficulty
    clip_id: str
    label: int
    num_frames: int
    fps: int
    width: int
    height: int

    @property
    def number(self) -> int:
        """Position among the clips of its class, from 0."""
        return self.index // len(CLASSES)

    def summary(self) -> dict[str, object]:
        """The clip as the manifest shows it."""
        return {k: v for k, v in asdict(self).items() if k not in ("seed", "difficulty", "index")}


def plan_clip(seed: int, index: int, difficulty: Difficulty) -> SynthClip:
    """Length, size and rate of clip `index`; classes take turns, lengths are 12 to 60 frames and mostly 25 to 50."""
    rng = np.random.default_rng([seed, index, 0])
    label = index % len(CLASSES)
    return SynthClip(
        seed=seed,
        index=index,
        difficulty=difficulty,
        clip_id=f"{CLASSES[label]}/{index // len(CLASSES) + 1:04d}",
        label=label,
        num_frames=12 + round(48 * rng.beta(2.5, 1.8)),
        fps=int(rng.choice(_RATES)),
        width=int(rng.choice(_SIDES)),
        height=int(rng.choice(_SIDES)),
    )


def draw_clip(clip: SynthClip) -> np.ndarray:
    """The frames of `clip` before compression, uint8 [num_frames, height, width, 3]."""
    return clip_frames(
        np.random.default_rng([clip.seed, clip.index, 1]),
        CLASSES[clip.label],
        num_frames=clip.num_frames,
        width=clip.width,
        height=clip.height,
        difficulty=clip.difficulty,
    )


def render_clip(clip: SynthClip, videos: Path) -> int:
    """Write `videos/<clip_id>.mp4`; return its size in bytes. Stopped half-way, it leaves a temporary name only."""
    path = videos / f"{clip.clip_id}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        encode(draw_clip(clip), clip.fps, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.stat().st_size


def encode(frames: np.ndarray, fps: int, path: Path) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.time_base = Fraction(1, fps)
        # Without mbtree: on frames this small x264's fast version of it reads memory it never wrote, and equal frames
        # give unequal videos.
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
