"""Our extraction beside the published procedure, alternating clip by clip in one process.

python -m benchmarks.extract --backbone small --clips 4
"""

import os
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from cyclopts import App

from benchmarks.machine import keep, matmul_peak, table

if TYPE_CHECKING:
    from pthnet.backbone import Backbone, FeatureBackbone
    from pthnet.videomae import VideoMAE
    from tasks.decode import DecodePool

app = App(help=__doc__)


@dataclass
class _Side:
    """One way of extracting: what it took and what it found."""

    seconds: float = 0.0
    clips: int = 0
    passes: int = 0
    features: dict[str, list[np.ndarray]] = field(default_factory=dict)


@app.default
def main(
    *,
    backbone: str = "small",
    device: Literal["cpu", "cuda"] = "cpu",
    clips: int = 4,
    frames: int = 30,
    together: int | None = None,
    micro_batch: int | None = None,
    weights: str | None = None,
    name: str = "extract",
) -> None:
    """Measure fp32 and bf16 against the published procedure.

    Parameters
    ----------
    backbone
        tiny, small ... giant; weights are random when no file is given, which costs the same time.
    clips, frames
        How many clips the published procedure works, of how many frames, 320 x 240.
    together
        Clips that ours takes at once, each time the other takes one: as the pipeline hands them to a device, decoded
        by as many processes as there are cores. 1 on a CPU, 32 on a GPU; an eighth of it in fp32.
    micro_batch
        Windows per forward pass, a quarter of it in fp32; the backbone's own choice for the device when left out.
    name
        Of the table below benchmarks/results/.
    """
    import torch

    from benchmarks.published_extraction import PlainVideoMAE, extract_clip
    from pthnet.matmul import exact_float32
    from pthnet.videomae import VideoMAE, VideoMAEConfig, flops
    from tasks.decode import DecodePool
    from tasks.micro_batch import micro_batch_of

    config = VideoMAEConfig.named(backbone)
    model = VideoMAE.seeded(config, 0)
    plain = PlainVideoMAE(config, model.state_dict()).eval().to(device)
    ours = {precision: _backbone(backbone, model, device, precision, weights) for precision in ("fp32", "bf16")}
    for precision, built in ours.items():
        if micro_batch:
            built.micro_batch = micro_batch if precision == "bf16" else max(1, micro_batch // 4)
        elif device == "cuda":
            built.micro_batch = micro_batch_of(built)
    together = together or (32 if device == "cuda" else 1)
    at_once = {"fp32": max(1, together // 8), "bf16": together}
    sides = {"published": _Side(), "fp32": _Side(), "bf16": _Side()}
    workers = len(os.sched_getaffinity(0)) if together > 1 else 1
    with tempfile.TemporaryDirectory() as folder, DecodePool(workers=workers) as decoders, exact_float32(device):
        paths = [_video(Path(folder) / f"{i}.mp4", frames, seed=i) for i in range(max(clips + 1, together))]
        decoded_s = decoded_frames = 0.0
        for i in range(clips + 1):  # the first clip warms both sides up and does not count
            started = time.perf_counter()
            found, passes = extract_clip(paths[i], plain, config.image_size, device)
            if i:
                _count(sides["published"], time.perf_counter() - started, passes, found)
            for precision, built in ours.items():
                some = [paths[(i + k) % len(paths)] for k in range(at_once[precision])]
                started = time.perf_counter()
                found, passes, decode_s, count = _ours(some, decoders, built, precision, config.image_size)
                if i:
                    _count(sides[precision], time.perf_counter() - started, passes, found, len(some))
                    decoded_s, decoded_frames = decoded_s + decode_s, decoded_frames + count
    reference = sides["published"].features
    rows = []
    for label, side in sides.items():
        precision = "bf16" if label == "bf16" else "fp32"
        peak = matmul_peak(device, precision)
        speed = side.passes * flops(config) / side.seconds
        rows.append(
            [
                label if label == "published" else f"ours, {label}",
                f"{side.passes / side.seconds:.2f}",
                f"{side.clips / side.seconds:.3f}",
                f"{side.clips / side.seconds / (sides['published'].clips / sides['published'].seconds):.2f}",
                f"{speed / 1e9:.0f}",
                f"{speed / peak:.0%}",
                *_agreement(reference, side.features),
            ]
        )
    header = ["procedure", "forward passes/s", "clips/s", "ratio", "model GFLOP/s", "of matmul peak", "max rel. error"]
    for precision, built in ours.items():
        rate, peak = built.rate(built.micro_batch), matmul_peak(device, precision)
        speed = rate * flops(config)
        bare = [f"{rate:.2f}", "", "", f"{speed / 1e9:.0f}", f"{speed / peak:.0%}", "", ""]
        rows.append([f"ours, {precision}, forward passes alone", *bare])
    notes = [
        f"{clips} clips of {frames} frames at 320x240, {backbone} on {device}, one process, alternating clip by clip"
        + (f" (ours {at_once['bf16']} clips at a time in bf16, {at_once['fp32']} in fp32)." if together > 1 else "."),
        f"Micro-batches: {', '.join(f'{p} {b.micro_batch}' for p, b in ours.items())} windows.",
        f"Matmul peak: {', '.join(f'{p} {matmul_peak(device, p) / 1e12:.3g} TFLOP/s' for p in ours)}.",
        f"Decoding for ours: {decoded_frames / decoded_s:.0f} frames/s a child process, {workers} of them.",
        f"Threads: {torch.get_num_threads()}.",
        "",
    ]
    keep(name, table(f"Extraction, {backbone} on {device}", [*header, "min cosine"], rows, notes))


def _backbone(name: str, model: "VideoMAE", device: str, precision: str, weights: str | None) -> "Backbone":
    """Ours, with the weights of a file or a copy of `model`, whose digest is not worth its seconds here."""
    from pthnet.backbone import Backbone, build_backbone
    from pthnet.extractor import Extractor, digest_state_dict

    if weights is not None:
        return build_backbone(name, device=device, precision=precision, weights=weights)
    extractor = Extractor(
        backbone=name, config=asdict(model.config), weights=digest_state_dict({}), precision=precision, seed=0
    )
    return Backbone(deepcopy(model), extractor, device=device)


def _count(side: _Side, seconds: float, passes: int, found: dict[str, np.ndarray], clips: int = 1) -> None:
    side.seconds += seconds
    side.clips += clips
    side.passes += passes
    for name, matrix in found.items():
        side.features.setdefault(name, []).append(matrix)


def _agreement(reference: dict[str, list[np.ndarray]], found: dict[str, list[np.ndarray]]) -> list[str]:
    """Largest difference relative to the feature's norm, and smallest cosine, over all windows of all levels."""
    error, cosine = 0.0, 1.0
    for name, matrices in reference.items():
        a, b = np.concatenate(matrices), np.concatenate(found[name])
        norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        error = max(error, float((np.linalg.norm(a - b, axis=1) / norms[0]).max()))
        cosine = min(cosine, float(((a * b).sum(1) / (norms[0] * norms[1])).min()))
    return [f"{error:.1e}", f"{cosine:.5f}"]


def _video(path: Path, frames: int, seed: int) -> str:
    from tasks.synth import SynthClip, draw_clip, encode

    clip = SynthClip(
        seed=seed,
        index=0,
        difficulty="easy",
        clip_id="",
        label=seed % 7,
        num_frames=frames,
        fps=25,
        width=320,
        height=240,
    )
    encode(draw_clip(clip), clip.fps, path)
    return str(path)


def _ours(
    paths: list[str], decoders: "DecodePool", backbone: "FeatureBackbone", precision: str, size: int
) -> tuple[dict[str, np.ndarray], int, float, int]:
    """Features of the first clip as `published_extraction.extract_clip` names them, and of all clips together: forward
    passes, seconds decoding, frames decoded."""
    from pthnet.pixels import shipped_size
    from pthnet.windows import LEVELS, frame_indices, pyramid
    from tasks.decode import DecodeRequest

    decoded = decoders.decode([DecodeRequest(uri=path, size=shipped_size(precision, size)) for path in paths])
    segments = [clip.frames for clip in decoded if clip.frames is not None]
    assert len(segments) == len(paths), [clip.detail for clip in decoded]
    windows = [pyramid(clip.num_frames) for clip in decoded]
    index = [
        np.concatenate([frame_indices(w.starts, clip.num_frames, reverse) for reverse in (False, True)])
        for w, clip in zip(windows, decoded, strict=True)
    ]
    features = backbone.extract(segments, index)
    halves = dict(zip(("forward", "reverse"), np.split(features[0], 2), strict=True))
    found = {f"{d}/{level}": half[windows[0].level(level)] for d, half in halves.items() for level in LEVELS}
    passes, decode_s = sum(map(len, features)), sum(clip.seconds for clip in decoded)
    return found, passes, decode_s, sum(clip.num_frames for clip in decoded)


if __name__ == "__main__":
    app()
