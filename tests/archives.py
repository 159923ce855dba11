"""Feature tables and lists of seeded numbers, learnable in a few epochs: what training is tested on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pthnet.extractor import Extractor
from pthnet.windows import DIRECTIONS, LEVELS, pyramid
from storage.commits import commit
from storage.features import FEATURES, FeatureTable
from storage.shards import write_shard
from tasks.feature_set import FeatureSet

CLASSES = ("Happy", "Sad", "Neutral")


@dataclass(frozen=True)
class Archive:
    """A feature table, its extractor and its lists."""

    features: str
    lists: Path
    extractor: str
    clip_ids: list[str]


def extractor(dim: int, seed: int = 0) -> Extractor:
    return Extractor(
        backbone="synthetic", config={"dim": dim, "image_size": 64}, weights="0" * 64, precision="fp32", seed=seed
    )


def write_archive(
    folder: Path,
    *,
    clips: int = 48,
    dim: int = 16,
    folds: int = 0,
    seed: int = 0,
    features: str | None = None,
    names: Sequence[str] = (),
) -> Archive:
    """`clips` clips of three classes; every fourth is a test clip, or of `folds` folds each takes its turn."""
    uri = features or str(folder / "features")
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(99).normal(size=(len(CLASSES), dim))
    drift = np.random.default_rng(98).normal(size=(len(CLASSES), dim)) * 0.1
    ids = list(names) or [f"{CLASSES[index % 3]}/{index:05d}" for index in range(clips)]
    rows = []
    for index, clip_id in enumerate(ids):
        frames = int(rng.integers(12, 61))
        label = index % len(CLASSES)
        windows = pyramid(frames)
        row = {
            "clip_id": clip_id,
            "segment": 0,
            "num_segments": 1,
            "uri": f"/videos/{clip_id}.mp4",
            "content": f"{seed}-{index}",
        }
        row |= {
            "num_frames": frames,
            "fps": 25.0,
            "width": 64,
            "height": 64,
            "decoder": "none",
            "created_at": datetime.now(UTC),
        }
        for direction in DIRECTIONS:
            time = np.arange(len(windows.starts))[:, None] * (1 if direction == "forward" else -1)
            values = prototypes[label] + time * drift[label] + rng.normal(size=(len(windows.starts), dim)) * 0.7
            positions = {level: windows.level(level).tolist() for level in LEVELS}
            row[direction] = {
                "starts": windows.starts.tolist(),
                **positions,
                "features": values.astype(np.float32).ravel().tolist(),
            }
        rows.append({**row, "extractor": extractor(dim).id})
    table = FeatureTable(uri)
    table.put_extractor(extractor(dim).id, extractor(dim).to_json())
    shard = write_shard(pa.Table.from_pylist(rows, schema=FEATURES), uri, extractor(dim).id)
    commit(uri, [shard], None, f"archive-{seed}", 1, "made")
    lists = folder / "lists"
    lists.mkdir(parents=True, exist_ok=True)
    if folds:
        for fold in range(folds):
            write_list(lists / f"set_{fold + 1}_train.txt", rows, lambda i, fold=fold: i // 3 % folds != fold)
            write_list(lists / f"set_{fold + 1}_test.txt", rows, lambda i, fold=fold: i // 3 % folds == fold)
    else:
        write_list(lists / "train.txt", rows, lambda i: i // 3 % 4 != 3)
        write_list(lists / "test.txt", rows, lambda i: i // 3 % 4 == 3)
    return Archive(uri, lists, extractor(dim).id, ids)


def write_list(path: Path, rows: Sequence[dict[str, Any]], wanted: Callable[[int], bool]) -> None:
    lines = [f"{row['clip_id']} {row['num_frames']} {index % 3}" for index, row in enumerate(rows) if wanted(index)]
    path.write_text("\n".join(lines) + "\n")


def feature_set(clips: int = 60, dim: int = 16, classes: int = 3, seed: int = 0, spread: float = 1.0) -> FeatureSet:
    """A FeatureSet of clips of 1 to 19 windows, without a table behind it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    counts = rng.integers(1, 20, clips)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    prototypes = rng.normal(size=(classes, dim))
    values = np.repeat(prototypes[labels], counts, 0) + spread * rng.normal(size=(int(offsets[-1]), dim))
    positions, position_offsets = {}, {}
    for level, stride in zip(LEVELS, (1, 2, 4), strict=True):
        grids = [np.unique(np.append(np.arange(0, count, stride), count - 1)) for count in counts]
        positions[level] = np.concatenate(grids).astype(np.int32)
        position_offsets[level] = np.concatenate([[0], np.cumsum([len(grid) for grid in grids])])
    return FeatureSet(
        clip_ids=np.array([f"clip/{index:06d}" for index in range(clips)]),
        features=values.astype(np.float32),
        offsets=offsets,
        positions=positions,
        position_offsets=position_offsets,
        labels=labels.astype(np.int64),
        extractor="synthetic",
    )
