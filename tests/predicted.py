"""What the tests of prediction share: small models, and features and tracks made of seeded numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pthnet.pth_net import PTHNet, PTHNetConfig
from pthnet.windows import pyramid
from storage.columns import ClipFeatures
from tasks.bundle import Bundle, load_bundle, save_bundle
from tasks.resolve import resolve_extractor
from tasks.score import ClipScores, score_clips

CLASSES = ("Happy", "Sad", "Neutral")


def small_bundle(
    folder: Path | None = None, *, dim: int = 16, classes: tuple[str, ...] = CLASSES, tiny: bool = False, seed: int = 0
) -> Bundle:
    """A pair of small networks with opinions; with `tiny` they read our tiny backbone's features."""
    extractor = resolve_extractor("tiny", random_weights=0, precision="fp32") if tiny else None
    dim = extractor.dim if extractor else dim
    networks = {}
    for number, direction in enumerate(("forward", "reverse")):
        torch.manual_seed(10 * seed + number)
        network = PTHNet(PTHNetConfig(in_dim=dim, dim=32, mlp_dim=48, num_classes=len(classes))).eval()
        with torch.no_grad():
            network.head.weight.mul_(6)
        networks[direction] = network
    spec: dict[str, Any] = {} if extractor is None else _plain(extractor.to_json())
    bundle = Bundle(
        networks=networks,
        mu=0.7,
        classes=classes,
        extractor=spec,
        extractor_id=extractor.id if extractor else "numbers",
    )
    return bundle if folder is None else load_bundle(save_bundle(bundle, folder))


def clip_features(frames: list[int], dim: int = 16, seed: int = 0) -> ClipFeatures:
    """Seeded features of clips of so many frames, in the layout of the table."""
    rng = np.random.default_rng(seed)
    pyramids = [pyramid(count) for count in frames]
    counts = np.array([len(p.starts) for p in pyramids])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    levels: dict[str, Any] = {}
    for level in ("high", "middle", "low"):
        parts = [p.level(level) for p in pyramids]
        levels[level] = np.concatenate(parts).astype(np.int32)
        levels[f"{level}_offsets"] = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return ClipFeatures(
        clip_ids=[f"clip/{index}" for index in range(len(frames))],
        num_windows=counts,
        offsets=offsets,
        features=rng.normal(size=(int(offsets[-1]), dim)).astype(np.float32),
        starts=np.concatenate([p.starts for p in pyramids]),
        num_frames=np.array(frames),
        fps=np.full(len(frames), 25.0),
        **levels,
    )


def some_scores(bundle: Bundle, frames: list[int], **options: Any) -> tuple[ClipScores, dict[str, ClipFeatures]]:
    """Scores of seeded clips, and the features they came from."""
    clips = {name: clip_features(frames, seed=number) for number, name in enumerate(bundle.networks)}
    return score_clips(bundle, clips, **options), clips


def _plain(text: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(text)
    return found
