"""Our extraction beside the published procedure, alternating clip by clip in one process.

python -m benchmarks.extract --backbone small --clips 4
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from cyclopts import App

from benchmarks.machine import keep, matmul_peak, table

if TYPE_CHECKING:
    from pthnet.backbone import FeatureBackbone
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
    weights: str | None = None,
    name: str = "extract",
) -> None:
    """Measure fp32 and bf16 against the published procedure.

    Parameters
    ----------
    backbone
        tiny, small ... giant; weights are random when no file is given, which costs the same time.
    clips, frames
        How many clips of how many frames, 320 x 240.
    name
        Of the table below benchmarks/results/.
    """
    import torch

    from benchmarks.published_extraction import PlainVideoMAE, extract_clip
    from pthnet.backbone import build_backbone
    from pthnet.videomae import VideoMAE, VideoMAEConfig, flops
    from tasks.decode import DecodePool

    config = VideoMAEConfig.named(backbone)
    plain = PlainVideoMAE(config, VideoMAE.seeded(config, 0).state_dict()).eval().to(device)
    ours = {
        precision: build_backbone(backbone, seed=0, device=device, precision=precision, weights=weights)
        for precision in ("fp32", "bf16")
    }
    with tempfile.TemporaryDirectory() as folder, DecodePool() as decoders:
        paths = [_video(Path(folder) / f"{i}.mp4", frames, seed=i) for i in range(clips + 1)]
        sides = {"published": _Side(), "fp32": _Side(), "bf16": _Side()}
        decoded_s = decoded_frames = 0.0
        for i, path in enumerate(paths):  # the first clip warms both sides up and does not count
            started = time.perf_counter()
            found, passes = extract_clip(path, plain, config.image_size, device)
            if i:
                _count(sides["published"], time.perf_counter() - started, passes, found)
            for precision, side in ours.items():
                started = time.perf_counter()
                found, passes, decode_s, count = _ours(path, decoders, side, precision, config.image_size)
                if i:
                    _count(sides[precision], time.perf_counter() - started, passes, found)
                    decoded_s, decoded_frames = decoded_s + decode_s, decoded_frames + count
    reference = sides["published"].features
    rows = []
    for label, side in sides.items():
        peak = matmul_peak(device, "bf16" if label == "bf16" else "fp32")
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
    notes = [
        f"{clips} clips of {frames} frames at 320x240, {backbone} on {device}, one process, alternating clip by clip.",
        f"Decoding for ours: {decoded_frames / decoded_s:.0f} frames/s, one child process.",
        f"Threads: {torch.get_num_threads()}.",
        "",
    ]
    keep(name, table(f"Extraction, {backbone} on {device}", [*header, "min cosine"], rows, notes))


def _count(side: _Side, seconds: float, passes: int, found: dict[str, np.ndarray]) -> None:
    side.seconds += seconds
    side.clips += 1
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
    path: str, decoders: "DecodePool", backbone: "FeatureBackbone", precision: str, size: int
) -> tuple[dict[str, np.ndarray], int, float, int]:
    """Features as `published_extraction.extract_clip` names them, forward passes, seconds decoding, frames decoded."""
    from pthnet.pixels import shipped_size
    from pthnet.windows import LEVELS, frame_indices, pyramid
    from tasks.decode import DecodeRequest

    decoded = decoders.decode([DecodeRequest(uri=path, size=shipped_size(precision, size))])[0]
    assert decoded.frames is not None, decoded.detail
    windows = pyramid(decoded.num_frames)
    index = [frame_indices(windows.starts, decoded.num_frames, reverse) for reverse in (False, True)]
    features = backbone.extract([decoded.frames], [np.concatenate(index)])[0]
    halves = dict(zip(("forward", "reverse"), np.split(features, 2), strict=True))
    found = {f"{d}/{level}": half[windows.level(level)] for d, half in halves.items() for level in LEVELS}
    return found, len(features), decoded.seconds, decoded.num_frames


if __name__ == "__main__":
    app()
