"""Optical-flow images from onset and apex frames, for `pthnet loso`: `pthnet flow combined.csv frames/ flow/`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tasks.flow_images import FlowJob

CHUNK = 8  # pairs in a Ray task: some seconds of TV-L1


def flow(
    csv: Path,
    frames: Path,
    out: Path,
    *,
    method: Literal["tvl1", "farneback"] = "tvl1",
    preview: Path | None = None,
    preview_samples: int = 6,
    overwrite: bool = False,
    address: str | None = None,
) -> int:
    """Compute flow and optical strain from every sample's onset to its apex, one PNG "<sub>_<file> .png" each.

    Images that are there already are kept, so the same command goes on after a kill.

    Parameters
    ----------
    csv
        The combined list: dataset, sub, filename_o, label, onset, apex (frame numbers or names).
    frames
        Holds <dataset>/<sub>/<file>/ or <sub>/<file>/ with the frames, cropped to the face; every node must see it.
    out
        Receives the flow images: 28 x 28, u as red, v as green, strain as blue, each min-max scaled to 0-255.
    method
        tvl1 (sharper, about 0.4 s a pair of 112 pixels) or farneback (about 3 ms).
    preview
        Also write a picture of the channels and the four parts of some samples to this PNG.
    preview_samples
        How many, evenly spread over the list.
    overwrite
        Compute images anew that are there.
    address
        Ray cluster to join.

    Returns
    -------
    int
        0, or 1 when images could not be made; they are listed.
    """
    import sys

    from tasks.flow_images import plan_flow
    from tasks.micro_list import read_micro_list

    samples = read_micro_list(csv)
    jobs = plan_flow(samples, frames, out)
    missing = [job for job in jobs if overwrite or not job.target.exists()]
    began = time.monotonic()
    compute = _here if len(missing) <= CHUNK and address is None else _over_the_cluster
    failed = compute(missing, method, address)
    made = len(missing) - len(failed)
    print(
        f"{made} flow images made in {time.monotonic() - began:.1f} s, {len(jobs) - len(missing)} there before: {out}"
    )
    if preview is not None:
        _preview(
            preview, [(s, j.target) for s, j in zip(samples, jobs, strict=True) if j.target.exists()], preview_samples
        )
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def make_chunk(jobs: "Sequence[FlowJob]", method: Any) -> list[str | None]:
    """What one Ray task runs: for every job None, or why it failed."""
    import cv2

    from tasks.flow_images import make_flow

    cv2.setNumThreads(1)  # the task holds one CPU
    return [make_flow(job, method) for job in jobs]


def _here(jobs: "Sequence[FlowJob]", method: str, address: str | None) -> dict[str, str]:
    """Name -> reason of the images that could not be made; a handful is done before Ray has started."""
    return {job.name: why for job, why in zip(jobs, make_chunk(jobs, method), strict=True) if why is not None}


def _over_the_cluster(jobs: "Sequence[FlowJob]", method: str, address: str | None) -> dict[str, str]:
    """The same as Ray tasks of a few pairs each."""
    import ray
    from rich.console import Console
    from rich.progress import track

    from cluster.connect import connect

    connect(address)
    task: Any = ray.remote(num_cpus=1, max_retries=3)(make_chunk)
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    pending = {task.remote(chunk, method): chunk for chunk in chunks}
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    for _ in track(range(len(chunks)), "flow", console=console, disable=not console.is_terminal, transient=True):
        (done,), _ = ray.wait(list(pending), num_returns=1)
        for job, reason in zip(pending.pop(done), ray.get(done), strict=True):
            if reason is not None:
                failed[job.name] = reason
    return failed


def _preview(path: Path, made: list[tuple[Any, Path]], count: int) -> None:
    import cv2

    from tasks.flow_images import preview

    count = min(max(count, 1), len(made))
    chosen = [made[number * len(made) // count] for number in range(count)]
    images = [(sample, cv2.imread(str(target), cv2.IMREAD_COLOR)) for sample, target in chosen]
    shown = [(sample, image.astype("uint8")) for sample, image in images if image is not None]
    if shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        preview(shown).savefig(path)
        print(f"preview of {len(shown)} samples: {path}")
