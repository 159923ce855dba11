"""A clip as one picture: what is seen, what is read into it from moment to moment, and what that rests on."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.palette import hex_of
from tasks.track import Track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = 8
MOST_POINTS = 600  # of a line: a long video has more windows than a picture has columns
INK, FAINT = "#1f2933", "#52606d"


def timeline(track: Track, thumbnails: Sequence[np.ndarray] = ()) -> "Figure":
    """Draw a clip.

    Parameters
    ----------
    track : Track
    thumbnails : sequence of uint8 [h, w, 3]
        Frames at even distances over the whole clip.
    """
    from matplotlib.figure import Figure

    shown = _shown(track)
    lines = [("fused", track.fused, 2.2)]
    lines += [
        (name, values, 1.1)
        for name, values in (("forward", track.forward), ("reverse", track.reverse))
        if values is not None
    ]
    lines = lines if len(lines) > 2 else lines[:1]
    evidence = bool(np.isfinite(track.contribution).any())
    heights = ([1.0] if len(thumbnails) else []) + [height for *_, height in lines] + ([0.9] if evidence else [])
    figure = Figure(figsize=(8.4, 1.0 + sum(heights) * 0.95), layout="constrained", dpi=100)
    axes = list(np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights)))
    figure.suptitle(_title(track), x=0.012, ha="left", fontsize=11, color=INK, fontweight="bold", parse_math=False)
    if len(thumbnails):
        _film(axes.pop(0), thumbnails)
    below = axes[0]
    for number, (name, values, _) in enumerate(lines):
        _lines(axes[number], track, values, shown)
        axes[number].set_ylabel(name, fontsize=8, color=FAINT)
        if number:
            axes[number].sharex(below)
    if evidence:
        _contributions(axes[-1], track)
        axes[-1].sharex(below)
    for each in axes[:-1]:
        each.tick_params(labelbottom=False)
    axes[-1].set_xlabel("seconds" if track.rate else "frames", fontsize=8, color=FAINT)
    _legend(axes[0], track, shown)
    return figure


def save_timeline(track: Track, thumbnails: Sequence[np.ndarray], path: Path) -> None:
    """Write `timeline` as a PNG."""
    from storage.files import write_atomic

    drawn = BytesIO()
    with warnings.catch_warnings():
        # Names in alphabets that the font lacks are drawn as boxes; the page, in the reader's fonts, shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        timeline(track, thumbnails).savefig(drawn, format="png", pil_kwargs={"optimize": True})
    write_atomic(str(path), drawn.getvalue())


def _title(track: Track) -> str:
    name = track.clip if len(track.clip) <= 60 else f"...{track.clip[-57:]}"
    return f"{name}: {track.label} {100 * track.confidence:.0f} %"


def _shown(track: Track) -> np.ndarray:
    """Classes that are drawn, the strongest of them at any moment."""
    return np.sort(np.argsort(-track.fused.max(0), kind="stable")[:MOST_LINES])


def _film(axes: Any, thumbnails: Sequence[np.ndarray]) -> None:
    height = min(frame.shape[0] for frame in thumbnails)
    gap = np.full((height, 3, 3), 255, np.uint8)
    parts: list[np.ndarray] = []
    for frame in thumbnails:
        parts += [frame[:height], gap]
    axes.imshow(np.concatenate(parts[:-1], axis=1), aspect="equal")
    axes.set_axis_off()


def _at(track: Track, frames: np.ndarray) -> np.ndarray:
    return frames / track.rate if track.rate else frames


def _lines(axes: Any, track: Track, values: np.ndarray, shown: np.ndarray) -> None:
    every = max(1, len(values) // MOST_POINTS)
    times = _at(track, track.centres)[::every]
    for index in shown:
        style = {"marker": "o", "markersize": 3} if len(times) <= 40 else {}
        own = track.classes[index] == track.label
        axes.plot(
            times,
            values[::every, index],
            color=hex_of(index),
            linewidth=2.2 if own else 1.2,
            alpha=1 if own else 0.8,
            **style,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1])
    _plain(axes, track)


def _contributions(axes: Any, track: Track) -> None:
    values, frames = np.nan_to_num(track.contribution), track.centres
    every = -(-len(values) // MOST_POINTS)
    if every > 1:  # of a long video, the window that says most in each stretch
        stretches = np.arange(0, len(values), every)
        strongest = [start + int(np.abs(values[start : start + every]).argmax()) for start in stretches]
        values, frames = values[strongest], frames[strongest]
    times, wide = _at(track, frames), _at(track, np.array([3.2 * every]))[0]
    axes.bar(times, values, width=wide, color=np.where(values >= 0, "#2f7d4f", "#b3402e"))
    axes.axhline(0, color=FAINT, linewidth=0.6)
    most = max(float(np.abs(values).max()), 0.01)
    axes.set_ylim(-1.15 * most, 1.15 * most)
    axes.set_ylabel("contribution", fontsize=8, color=FAINT)
    _plain(axes, track)


def _plain(axes: Any, track: Track) -> None:
    axes.set_xlim(_at(track, np.array([track.starts.min()]))[0], _at(track, np.array([track.ends.max()]))[0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cad3")
    axes.tick_params(labelsize=7, colors=FAINT)
    axes.grid(alpha=0.25)


def _legend(axes: Any, track: Track, shown: np.ndarray) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=hex_of(index), linewidth=2) for index in shown]
    names = [track.classes[index].replace("$", r"\$") for index in shown]
    axes.legend(handles, names, fontsize=7.5, ncols=1, loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False)
