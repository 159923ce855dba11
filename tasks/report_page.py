"""All predictions as one HTML page that needs neither a server nor a network: report.html, opened from its folder.

Numbers and thumbnails are inside; timelines and videos lie beside it, named relatively, so the folder can be moved.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tasks.illustrate import Pictures
from tasks.palette import hex_of
from tasks.track import Track

NO_PICTURES = Pictures()
MOST_WINDOWS = 300  # of one clip on the page; all are in windows.parquet
MOST_THUMBNAILS = 1000  # 2 to 3 kB each; beyond that they are loaded from their files


@dataclass(frozen=True, kw_only=True)
class PageClip:
    """One clip on the page.

    Attributes
    ----------
    track : Track
    shares : float32 [C]
        The clip's own probabilities.
    agreement : float or None
    num_frames : int
    uri, kind : str
        As in CLIPS; shown when there is no overlay.
    pictures : Pictures
    """

    track: Track
    shares: np.ndarray
    agreement: float | None
    num_frames: int
    uri: str
    kind: str
    pictures: Pictures = NO_PICTURES


def write_page(
    folder: Path,
    clips: Sequence[PageClip],
    classes: Sequence[str],
    *,
    title: str,
    about: str,
    refused: Iterable[tuple[str, str, str]] = (),
) -> Path:
    """Write report.html.

    Parameters
    ----------
    folder
        Of the predictions; pictures are named relative to it.
    clips
        What is shown.
    classes
        In the model's order.
    title, about
        Heading, and a line below it.
    refused
        Clip, kind and detail of clips without a prediction.
    """
    from storage.files import write_atomic

    embed = len(clips) <= MOST_THUMBNAILS
    data = {
        "title": title,
        "about": about,
        "classes": list(classes),
        "colours": [hex_of(index) for index in range(len(classes))],
        "clips": [_clip(folder, clip, embed) for clip in clips],
        "refused": [list(each) for each in refused],
    }
    # "<" never appears in the data's text, so that no name can end the script element.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    template = files("tasks").joinpath("report_page.html").read_text(encoding="utf-8")
    path = folder / "report.html"
    write_atomic(str(path), template.replace("%DATA%", text).encode("utf-8", "replace"))
    return path


def _clip(folder: Path, clip: PageClip, embed: bool) -> dict[str, Any]:
    track, pictures = clip.track, clip.pictures
    rate = track.rate or 1.0
    every = max(1, -(-len(track.starts) // MOST_WINDOWS))
    contribution = track.contribution[::every]
    return {
        "clip": track.clip,
        "label": track.classes.index(track.label),
        "p": _rounded(clip.shares),
        "agreement": None if clip.agreement is None else round(clip.agreement, 3),
        "seconds": round(clip.num_frames / track.rate, 2) if track.rate else None,
        "unit": " s" if track.rate else " frames",
        "windows": {
            "start": _rounded(track.starts[::every] / rate),
            "end": _rounded(track.ends[::every] / rate),
            "p": [_rounded(row) for row in track.fused[::every]],
            "contribution": [round(float(v), 4) if np.isfinite(v) else None for v in contribution],
        },
        "thumbnail": _thumbnail(folder, pictures.thumbnail, embed),
        "timeline": quote(pictures.timeline),
        "video": quote(pictures.overlay) or _original(folder, clip),
        "problem": pictures.problem,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def _thumbnail(folder: Path, path: str, embed: bool) -> str:
    if not path or not embed:
        return quote(path)
    return "data:image/jpeg;base64," + base64.b64encode((folder / path).read_bytes()).decode()


def _original(folder: Path, clip: PageClip) -> str:
    """The clip itself, if it is a local video."""
    path = Path(clip.uri)
    return path.resolve().as_uri() if clip.kind == "video" and "://" not in clip.uri and path.exists() else ""
