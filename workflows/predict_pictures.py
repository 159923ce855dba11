"""The pictures of a prediction: thumbnail, timeline and overlay of each clip, in other processes, and the page."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.bundle import Bundle
    from tasks.report_page import PageClip
    from tasks.score import ClipScores
    from workflows.predict import PredictionResult


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which pictures are made.

    Attributes
    ----------
    timeline, overlay, report
        A picture per clip, a video per clip, the page.
    most
        Clips that get pictures and videos, the first by name; the page lists all.
    """

    timeline: bool = True
    overlay: bool = True
    report: bool = True
    most: int = 500

    def __bool__(self) -> bool:
        return self.timeline or self.overlay or self.report


def page_clips(scores: "ClipScores", chunk: "pa.Table", classes: tuple[str, ...]) -> "Iterator[tuple[PageClip, str]]":
    """What pictures need of the clips of a chunk, and the content of each."""
    import numpy as np

    from tasks.report_page import PageClip
    from tasks.track import track_of

    apart = np.full(len(scores.clip_ids), np.nan)
    if {"forward", "reverse"} <= set(scores.clip):
        apart = np.abs(scores.clip["forward"] - scores.clip["reverse"]).sum(1) / 2
    for index, row in enumerate(chunk.select(["uri", "kind", "content"]).to_pylist()):
        yield (
            PageClip(
                track=track_of(scores, index, classes),
                shares=scores.clip["fused"][index].copy(),
                agreement=None if np.isnan(apart[index]) else float(1 - apart[index]),
                num_frames=int(scores.num_frames[index]),
                uri=row["uri"],
                kind=row["kind"],
            ),
            row["content"],
        )


def illustrate_clips(
    clips: "Sequence[tuple[PageClip, str]]", out: Path, wanted: Wanted, model: str
) -> "list[PageClip]":
    """Make what is missing of the pictures of the first `wanted.most` clips; all clips come back, those with theirs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tasks.illustrate import PictureJob, illustrate_all

    drawn = clips[: wanted.most]
    jobs = [
        PictureJob(
            track=clip.track,
            uri=clip.uri,
            kind=clip.kind,
            content=content,
            folder=str(out),
            model=model,
            timeline=wanted.timeline,
            overlay=wanted.overlay,
        )
        for clip, content in drawn
    ]
    console = Console(stderr=True)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("drawing", total=len(jobs))
        made = illustrate_all(jobs, workers=os.cpu_count() or 1, told=lambda: progress.advance(bar))
    return [
        *(replace(clip, pictures=pictures) for (clip, _), pictures in zip(drawn, made, strict=True)),
        *(clip for clip, _ in clips[wanted.most :]),
    ]


def write_report(
    clips: "Sequence[PageClip]", refused: "pa.Table", result: "PredictionResult", bundle: "Bundle"
) -> Path:
    """The page over all clips."""
    from tasks.report_page import write_page

    version = f" (version {result.model_version})" if result.model_version else ""
    pictured = sum(bool(clip.pictures.thumbnail) for clip in clips)
    limits = "" if pictured == len(clips) or not pictured else f"; pictures of the first {pictured}"
    name = bundle.facts.get("benchmark") or bundle.facts.get("name")
    trained = f", trained on {name}" if name else ""
    return write_page(
        Path(result.out),
        clips,
        bundle.classes,
        title=f"Expressions in {len(clips)} clips",
        about=f"model {result.model}{version}{trained}, features by {result.extractor}{limits}",
        refused=[(row["clip"], row["kind"], row["detail"] or "") for row in refused.slice(0, 5000).to_pylist()],
    )
