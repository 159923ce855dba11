"""The authors' published feature trees, into the feature table and back.

    get_features/<dataset>/th14_vit_g_16_{4,8,16}[_face][_rv]/<clip>.npy        float [windows, dim]

One file per clip, stride (4 high, 8 middle, 16 low) and direction (_rv: reversed frames): three separate extractions
whose window counts follow the cover rule. In the table a clip is one row. The windows of stride 4 come first; a window
of stride 8 or 16 shares the row of stride 4 with the same start when their features agree (bit for bit by default, so
that an export gives back the very numbers), and else is appended as a row of its own, so starts may repeat.

The files do not tell the number of frames. Where a list of frames tells it, it is used. Otherwise it is the largest
that gives all three counts, at most three more than the true one; the last start is then a multiple of its stride.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from storage import files, quarantine
from storage.clips import CLIPS
from storage.columns import DIRECTIONS, FEATURES, LEVELS, ClipFeatures
from storage.errors import StorageError
from storage.files import Entry

STRIDES = {"high": 4, "middle": 8, "low": 16}
_WINDOW = 16


class _Problem(Exception):
    """A clip that cannot be imported; becomes a row of quarantine."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Imported:
    """A batch of clips: FEATURES rows of the good ones, QUARANTINE rows of the others."""

    rows: pa.Table
    problems: pa.Table


def folder_name(level: str, direction: str, face: bool) -> str:
    """Folder of a level and direction in the published layout."""
    return f"th14_vit_g_16_{STRIDES[level]}{'_face' if face else ''}{'_rv' if direction == 'reverse' else ''}"


def list_published(root: str, dataset: str, *, face: bool = False) -> pa.Table:
    """The clips of a published tree as CLIPS (kind "npy"), sorted: what plan() compares with the table.

    Parameters
    ----------
    root
        The folder get_features, local or s3://.
    dataset
        The folder below it.
    face
        The features of the face crops instead of the whole frames.

    Raises
    ------
    StorageError
        When there is no such tree.
    """
    tree = files.join(root, dataset)
    parts: dict[str, list[tuple[str, Entry]]] = {}
    for name in _folders(face):
        for entry in _entries(files.join(tree, name)):
            if entry.path.endswith(".npy"):
                parts.setdefault(entry.path[:-4], []).append((name, entry))
    if not parts:
        raise StorageError(
            f"{tree} holds no features; expected {folder_name('high', 'forward', face)}/<clip>.npy and its like"
        )
    ids = sorted(parts)
    contents = [
        hashlib.blake2b(
            "".join(f"{name}\0{e.size}\0{e.tag}\n" for name, e in sorted(parts[i])).encode(), digest_size=16
        ).hexdigest()
        for i in ids
    ]
    sizes = [sum(entry.size for _, entry in parts[i]) for i in ids]
    place = tree if files.is_s3(tree) else os.path.abspath(files.local_path(tree))
    columns = [ids, [place] * len(ids), ["npy"] * len(ids), [f"npy:{c}" for c in contents], sizes]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, CLIPS, strict=True)], schema=CLIPS)


def read_published(
    clips: pa.Table,
    extractor_id: str,
    *,
    face: bool = False,
    lists: Mapping[str, pa.Table] | None = None,
    tolerance: float = 0.0,
    run_id: str = "",
    batch: int = 512,
) -> Iterator[Imported]:
    """Read clips of list_published, batch by batch.

    Parameters
    ----------
    clips
        CLIPS of list_published (what plan() left of them); an attempt column is taken over.
    lists
        Lists (storage.lists.read_list) to check the counts against, by a name for messages. A list of frame counts
        also gives num_frames.
    tolerance
        Largest difference by which a coarse level's window may differ from the high level's and still share its row.

    Yields
    ------
    Imported
        Every clip is in exactly one of its two tables. Problem kinds: unreadable, not_features, not_finite,
        missing_level, counts_inconsistent, count_mismatch, dim_mismatch.
    """
    expected = _expected(lists or {})
    present = {
        (direction, level)
        for direction in DIRECTIONS
        for level in LEVELS
        if clips.num_rows and _exists(files.join(clips["uri"][0].as_py(), folder_name(level, direction, face)))
    }
    dim: int | None = None

    def one(clip: dict[str, Any]) -> dict[str, Any] | _Problem:
        try:
            return _read_clip(clip, face, present, expected.get(clip["clip_id"], []), tolerance)
        except _Problem as problem:
            return problem

    with ThreadPoolExecutor(8) as pool:
        for begin in range(0, clips.num_rows, batch):
            part = clips.slice(begin, batch).to_pylist()
            good, bad = [], []
            for clip, result in zip(part, pool.map(one, part), strict=True):
                if not isinstance(result, _Problem):
                    dim = dim or result["dim"]
                    if result["dim"] != dim:
                        result = _Problem("dim_mismatch", f"vectors of {result['dim']} numbers among vectors of {dim}")
                now = datetime.now(UTC)
                if isinstance(result, _Problem):
                    bad.append(
                        quarantine.row(
                            clip_id=clip["clip_id"], segment=0, uri=clip["uri"], content=clip["content"],
                            extractor=extractor_id, stage="import", kind=result.kind, detail=str(result),
                            attempt=clip.get("attempt") or 1, run_id=run_id, at=now,
                        )
                    )  # fmt: skip
                else:
                    good.append({**result, "created_at": now, "extractor": extractor_id})
            yield Imported(_features(good), pa.Table.from_pylist(bad, schema=quarantine.QUARANTINE))


def export_published(features: ClipFeatures, root: str, dataset: str, direction: str, *, face: bool = False) -> int:
    """Write clips in the published layout; returns the number of files. Levels without windows get none."""
    written = 0
    for level in LEVELS:
        positions, offsets = getattr(features, level), getattr(features, f"{level}_offsets")
        folder = files.join(root, dataset, folder_name(level, direction, face))
        for index, clip_id in enumerate(features.clip_ids):
            chosen = positions[offsets[index] : offsets[index + 1]] + features.offsets[index]
            if not len(chosen):
                continue
            buffer = io.BytesIO()
            np.save(buffer, features.features[chosen], allow_pickle=False)
            files.write_atomic(files.join(folder, f"{clip_id}.npy"), buffer.getvalue())
            written += 1
    return written


def _folders(face: bool) -> list[str]:
    return [folder_name(level, direction, face) for direction in DIRECTIONS for level in LEVELS]


def _exists(folder: str) -> bool:
    return next(iter(_entries(folder)), None) is not None


def _entries(folder: str) -> Iterator[Entry]:
    if files.is_s3(folder) or os.path.isdir(files.local_path(folder)):
        yield from files.walk(folder)


def _expected(lists: Mapping[str, pa.Table]) -> dict[str, list[tuple[str, str, int | None, int]]]:
    """By clip: (list, unit, stride, count)."""
    out: dict[str, list[tuple[str, str, int | None, int]]] = {}
    for name, table in lists.items():
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        stride = int(about["stride"]) if about.get("stride") else None
        for clip_id, count in zip(table["clip_id"].to_pylist(), table["count"].to_pylist(), strict=True):
            if count is not None:
                out.setdefault(clip_id, []).append((name, about.get("unit", ""), stride, count))
    return out


def _read_clip(
    clip: dict[str, Any],
    face: bool,
    present: set[tuple[str, str]],
    expected: list[tuple[str, str, int | None, int]],
    tolerance: float,
) -> dict[str, Any]:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for direction in DIRECTIONS:
        found: dict[str, np.ndarray] = {}
        for level in (level for level in LEVELS if (direction, level) in present):
            path = files.join(clip["uri"], folder_name(level, direction, face), f"{clip['clip_id']}.npy")
            if (array := _load(path)) is not None:
                found[level] = array
        lacking = [level for level in LEVELS if (direction, level) in present and level not in found]
        if found and lacking:  # neither: the two directions' trees differ by a few clips
            raise _Problem("missing_level", f"{folder_name(lacking[0], direction, face)} lacks this clip")
        if found:
            arrays[direction] = found
    if not arrays:
        raise _Problem("unreadable", "its files are gone")
    dims = {array.shape[1] for found in arrays.values() for array in found.values()}
    if len(dims) > 1:
        raise _Problem("dim_mismatch", f"vectors of different lengths: {sorted(dims)}")
    counts = [{level: len(array) for level, array in found.items()} for found in arrays.values()]
    if len(counts) == 2 and any(counts[0][k] != counts[1][k] for k in counts[0].keys() & counts[1].keys()):
        raise _Problem("counts_inconsistent", f"forward has {counts[0]} windows, reverse {counts[1]}")
    num_frames = _num_frames(counts[0] | counts[-1], expected)
    return {
        **{name: clip[name] for name in ("clip_id", "uri", "content")},
        "segment": 0,
        "num_segments": 1,
        "num_frames": num_frames,
        "decoder": "published npy",
        "dim": dims.pop(),
        **{direction: _windows(found, num_frames, tolerance) for direction, found in arrays.items()},
    }


def _load(path: str) -> np.ndarray | None:
    try:
        data = files.read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Problem("unreadable", f"{path}: {files.scrub(str(error))}") from None
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)  # a pickle could run code
    except (ValueError, EOFError, OSError) as error:
        raise _Problem("unreadable", f"{path}: no plain .npy file ({files.scrub(str(error))})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        shape = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise _Problem("not_features", f"{path}: expected floats [windows, dim], found {shape}")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise _Problem("not_finite", f"{path}: holds infinite numbers or NaN")
    return array


def _cover(num_frames: int, stride: int) -> int:
    return 1 if num_frames <= _WINDOW else -(-(num_frames - _WINDOW) // stride) + 1


def _num_frames(counts: dict[str, int], expected: list[tuple[str, str, int | None, int]]) -> int:
    """The number of frames that the counts imply, after a check against the lists."""
    frames: int | None = None
    for name, unit, stride, count in expected:
        if unit == "frames":
            frames = count
            for level, n in counts.items():
                if n != (want := _cover(count, STRIDES[level])):
                    raise _Problem("count_mismatch", f"{name}: {count} frames make {want} {level} windows, found {n}")
        elif unit == "windows":
            levels = [level for level in counts if stride in (None, STRIDES[level])]
            if levels and all(counts[level] != count for level in levels):
                found = ", ".join(f"{counts[level]} {level}" for level in levels)
                raise _Problem("count_mismatch", f"{name} says {count} windows, found {found}")
    if frames is not None:
        return frames
    most = min(STRIDES[level] * (n - 1) + _WINDOW for level, n in counts.items())
    if any(_cover(most, STRIDES[level]) != n for level, n in counts.items()):
        raise _Problem("counts_inconsistent", f"no number of frames gives these windows at the three strides: {counts}")
    return most


def _windows(found: dict[str, np.ndarray], num_frames: int, tolerance: float) -> dict[str, Any]:
    starts: list[int] = []
    blocks: list[np.ndarray] = []
    positions: dict[str, list[int]] = {level: [] for level in LEVELS}
    at: dict[int, int] = {}  # start of a row of the first level -> its position
    for level, array in found.items():
        last = max(0, num_frames - _WINDOW)
        for index in range(len(array)):
            start = min(index * STRIDES[level], last)
            place = at.get(start)
            if place is None or not _same(blocks[place], array[index], tolerance):
                place = len(blocks)
                blocks.append(array[index])
                starts.append(start)
                at.setdefault(start, place)
            positions[level].append(place)
    return {"starts": starts, **positions, "features": np.concatenate(blocks)}


def _same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.array_equal(a, b) if tolerance == 0 else np.abs(a - b).max() <= tolerance)


def _features(rows: list[dict[str, Any]]) -> pa.Table:
    columns = []
    for field in FEATURES:
        values = [row.get(field.name) for row in rows]
        if field.name not in DIRECTIONS:
            columns.append(pa.array(values, field.type))
            continue
        # Through NumPy: as Python floats the vectors would take ten times their size.
        parts = []
        for sub in field.type:
            if sub.name == "features":
                arrays = [v["features"] if v else np.empty(0, np.float32) for v in values]
                offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int32)
                flat = np.concatenate(arrays) if arrays else np.empty(0, np.float32)
                parts.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))
            else:
                parts.append(pa.array([v[sub.name] if v else [] for v in values], sub.type))
        mask = pa.array([v is None for v in values], pa.bool_())
        columns.append(pa.StructArray.from_arrays(parts, fields=list(field.type), mask=mask))
    return pa.table(columns, schema=FEATURES)
