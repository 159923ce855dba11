"""Flow images on disk: `<sub>_<file> .png` (the published name, with its space), made from onset and apex frames."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from pthnet.errors import ModelError
from pthnet.flow import CHANNELS, SIZE, Method, flow_image, four_parts
from pthnet.micro_expressions import CLASSES
from tasks.micro_list import MicroSample, refuse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class FlowJob:
    """One flow image to make: two frames in, one PNG out."""

    name: str
    onset: Path
    apex: Path
    target: Path


def flow_path(directory: Path, name: str) -> Path:
    """Where the flow image of a sample lies, under its published name."""
    return directory / f"{name} .png"


def plan_flow(samples: Sequence[MicroSample], frames: Path, out: Path) -> list[FlowJob]:
    """Find every sample's onset and apex frame.

    A sample's frames lie in `<frames>/<dataset>/<sub>/<file>/` or `<frames>/<sub>/<file>/`. The columns onset and
    apex hold a frame's file name or number (the last digits of its name); without them the files are called onset.*
    and apex.*.

    Raises
    ------
    StorageError
        Listing the samples without a folder or frame.
    """
    problems: dict[str, list[str]] = {}
    jobs = []
    for sample in samples:
        folders = (frames / sample.dataset / sample.sub / sample.file, frames / sample.sub / sample.file)
        folder = next((f for f in folders if f.is_dir()), None)
        if folder is None:
            problems.setdefault(f"no folder {frames}/[<dataset>/]<sub>/<file>", []).append(sample.name)
            continue
        images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        onset, apex = (_frame(images, given, word) for given, word in ((sample.onset, "onset"), (sample.apex, "apex")))
        for word, given, found in (("onset", sample.onset, onset), ("apex", sample.apex, apex)):
            if found is None:
                problems.setdefault(f"no {word} frame in its folder", []).append(
                    f"{sample.name} ({given or word + '.*'})"
                )
        if onset and apex:
            jobs.append(FlowJob(sample.name, onset, apex, flow_path(out, sample.name)))
    refuse(problems, f"{frames}: frames of {len(samples) - len(jobs)} of {len(samples)} samples were not found")
    return jobs


def _frame(images: Sequence[Path], given: str, word: str) -> Path | None:
    if not given:
        return next((p for p in images if p.stem.lower() == word), None)
    named = next((p for p in images if given in (p.name, p.stem)), None)
    if named or not re.fullmatch(r"\d+(\.0)?", given):
        return named
    number = int(float(given))
    digits = ((p, re.search(r"(\d+)$", p.stem)) for p in images)
    return next((p for p, last in digits if last and int(last[1]) == number), None)


def make_flow(job: FlowJob, method: Method = "tvl1", size: int = SIZE) -> str | None:
    """Write one flow image; the reason when it cannot be made, None when it is."""
    onset, apex = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (job.onset, job.apex))
    for path, image in ((job.onset, onset), (job.apex, apex)):
        if image is None:
            return f"{path} is no image that OpenCV reads"
    assert onset is not None
    assert apex is not None
    try:
        write_png(flow_image(onset.astype(np.uint8), apex.astype(np.uint8), method, size), job.target)
    except (ModelError, cv2.error) as error:
        return str(error).strip()
    return None


def write_png(image: NDArray[np.uint8], target: Path) -> None:
    """Write an image whole or not at all; three channels are taken as blue, green, red = strain, v, u."""
    ok, encoded = cv2.imencode(".png", image)
    if not ok:
        raise ModelError(
            f"an image of {image.shape} {image.dtype} cannot be written as a PNG; expected uint8 [H, W] or [H, W, 3]"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_bytes(encoded.tobytes())
    os.replace(part, target)


def preview(samples: Sequence[tuple[MicroSample, NDArray[np.uint8]]]) -> "Figure":
    """The channels and the four parts (published and corrected crop) of some samples, one row each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.7 * len(samples) + 0.4), layout="constrained", dpi=110)
    axes = figure.subplots(len(samples), 5, squeeze=False)
    for row, (sample, image) in zip(axes, samples, strict=True):
        for cell, channel in zip(row, (2, 1, 0), strict=False):
            cell.imshow(image[..., channel], cmap="viridis", vmin=0, vmax=255)
        if image.shape[:2] == (SIZE, SIZE):
            row[3].imshow(four_parts(image)[..., ::-1])
            row[4].imshow(four_parts(image, axes="corrected")[..., ::-1])
        for cell in row:
            cell.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{sample.name}\n{CLASSES[sample.label]}", fontsize=8)
    for cell, title in zip(axes[0], (*CHANNELS[::-1], "four parts, published", "four parts, corrected"), strict=True):
        cell.set_title(title, fontsize=9)
    return figure
