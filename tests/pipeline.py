"""What the tests of extraction share: Ray for a module, cheap archives, and the account of a table."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from pthnet.extractor import Extractor
from pthnet.pixels import shipped_size
from pthnet.windows import segment_windows
from storage import quarantine
from storage.columns import complete
from storage.features import FeatureTable
from tasks.decode import Decoded
from tasks.decode_rows import attach, decode_rows
from tasks.extract import ExtractFeatures
from tasks.resolve import resolve_extractor
from tasks.segments import cut, whole_rows
from tests.videos import encode
from workflows.extract import Report, Settings, listed, run

SETTINGS = Settings(measure=False)
BAD_READER = partial(decode_rows, reader="tests.tasks.bad_readers:by_name")
# What the command line needs to compute what `tiny()` does.
OPTIONS = ["--backbone", "tiny", "--random-weights", "0", "--precision", "fp32", "--device", "cpu"]


def tiny(seed: int = 0) -> Extractor:
    """The small backbone with weights of a seed, exact."""
    return resolve_extractor("tiny", random_weights=seed, precision="fp32")


def null() -> Extractor:
    """No backbone at all: zeros of four numbers a window."""
    return Extractor(backbone="null", config={"image_size": 8, "dim": 4}, weights="0" * 64, precision="fp32")


def planned_rows(*clips: tuple[str, str], num_frames: int = 0, segment_frames: int = 0, attempt: int = 1) -> pa.Table:
    """SEGMENTS rows of clips (clip_id, content), whole or cut."""
    columns = {
        "clip_id": [clip_id for clip_id, _ in clips],
        "uri": [f"/videos/{clip_id}.mp4" for clip_id, _ in clips],
        "kind": ["video"] * len(clips),
        "content": [content for _, content in clips],
        "attempt": pa.array([attempt] * len(clips), pa.int32()),
        "num_frames": pa.array([num_frames] * len(clips), pa.int64()),
        "segment_frames": pa.array([segment_frames] * len(clips), pa.int64()),
    }
    return cut(pa.table(columns))


def decoded_rows(
    rows: pa.Table,
    *,
    frames: int | Mapping[str, int] = 20,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> pa.Table:
    """DECODED rows of black frames without a decoder, as many as given (by content); `failed` fail as told."""
    decoded, first = [], []
    for row in rows.to_pylist():
        total = frames if isinstance(frames, int) else frames[row["content"]]
        begin, end = 0, total
        if row["num_segments"] > 1:
            total = row["num_frames"]
            args = total, row["segment"], row["num_segments"], row["segment_frames"]
            begin, end = segment_windows(*args, "cover")[1]
        first.append(begin)
        if kind := failed.get(row["clip_id"]):
            decoded.append(Decoded(status="failed", kind=kind, detail=f"told to fail: {kind}"))
        else:
            black = np.zeros((end - begin, 8, 8, 3), np.uint8)
            decoded.append(Decoded(frames=black, num_frames=total, fps=25.0, width=8, height=8, decoder="none"))
    return attach(rows, decoded, first)


@contextmanager
def local_ray() -> Iterator[str]:
    """Ray on this machine for as long as a module's tests run; its address, for other drivers to join."""
    import ray

    from cluster.connect import connect

    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), *filter(None, sys.path)])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path  # workers import the tests' own stages
    try:
        connect("local", num_cpus=2)
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def extract_all(
    videos: Path | str, features: Path | str, *, seed: int = 0, decode: Any = None, **settings: Any
) -> Report:
    """One run over everything below a folder."""
    chosen = Settings(measure=False, **settings)
    return run(listed([str(videos)]), str(features), tiny(seed), settings=chosen, decode=decode)


def many(folder: Path, names: list[str], *, frames: int = 6) -> Path:
    """Hard links to one small video under many names."""
    folder.mkdir(parents=True, exist_ok=True)
    source = encode(folder.parent / f"{folder.name}-source.mp4", frames=frames)
    for name in names:
        os.link(source, folder / f"{name}.mp4")
    return folder


def alone(videos: Path | str) -> dict[str, dict[str, np.ndarray]]:
    """By clip below a folder what `vectors` must give: each decoded whole and computed by itself, without Ray."""
    extractor = tiny()
    stage = ExtractFeatures(
        extractor, threads=2, measure=False
    )  # a forward pass adds in an order of its threads' number
    size = shipped_size(extractor.precision, extractor.image_size)
    clips = listed([str(videos)])
    rows = cut(whole_rows(clips.append_column("attempt", pa.repeat(pa.scalar(1, pa.int32()), clips.num_rows))))
    out = {}
    for index, clip_id in enumerate(rows["clip_id"].to_pylist()):
        how = {"image_size": size[0] if size else None, "timeout_s": 60.0, "whole_limit": 1 << 20}
        done = stage(decode_rows(rows.slice(index, 1), **how)).to_pylist()[0]  # type: ignore[arg-type]
        assert done["status"] == "ok", done
        out[clip_id] = {}
        for direction in ("forward", "reverse"):
            found = done[direction]
            matrix = np.array(found.pop("features"), np.float32).reshape(len(found["starts"]), -1)
            out[clip_id] |= {direction: matrix, **{f"{direction} {name}": np.array(found[name]) for name in found}}
    return out


def account(features: Path | str, extractor: str | None = None) -> dict[str, str]:
    """By clip: "features", or the kind of failure that stands (of newer content, where there are features too).

    Fails when one content is in both, when a row is there twice, or when a reader could see part of a clip.
    """
    extractor = extractor or tiny().id
    table = FeatureTable(str(features))
    keys = table.keys(extractor, times=True)
    rows = list(zip(*(keys[name].to_pylist() for name in ("clip_id", "segment", "content")), strict=True))
    assert len(rows) == len(set(rows)), "a row is in the table twice"
    whole = complete(keys)
    done = set(whole["clip_id"].to_pylist())
    assert set(table.complete("forward", extractor)) == done, "a reader sees other clips than are complete"
    failed = quarantine.standing(quarantine.read(str(features), extractor), keys)
    kinds = dict(zip(failed["clip_id"].to_pylist(), failed["kind"].to_pylist(), strict=True))
    assert len(kinds) == failed.num_rows, "a clip stands in quarantine twice"
    held = set(zip(whole["clip_id"].to_pylist(), whole["content"].to_pylist(), strict=True))
    stands = set(zip(failed["clip_id"].to_pylist(), failed["content"].to_pylist(), strict=True))
    assert not held & stands, "a clip is in features and in quarantine"
    return dict.fromkeys(done, "features") | kinds


def vectors(features: Path | str, clip_id: str, extractor: str | None = None) -> dict[str, np.ndarray]:
    """Features and starts of one clip, both directions."""
    table = FeatureTable(str(features))
    out = {}
    for direction in ("forward", "reverse"):
        loaded = table.load([clip_id], direction, extractor or tiny().id)
        out[direction], out[f"{direction} starts"] = loaded.features, loaded.starts
        out |= {f"{direction} {level}": getattr(loaded, level) for level in ("high", "middle", "low")}
    return out


def assert_nothing_to_do(videos: Path | str, features: Path | str, times: int = 1, **settings: Any) -> None:
    """The same run again changes nothing."""
    before = FeatureTable(str(features)).version()
    for _ in range(times):
        report = extract_all(videos, features, **settings)
        assert (report.done, report.failed, report.commits) == (0, {}, 0)
        assert report.planned["known"] + report.planned["quarantined"] == report.clips
    assert FeatureTable(str(features)).version() == before
