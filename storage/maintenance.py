"""Looking after a feature table: what is in it, small files merged, stale rows dropped, lost files removed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import commits, delta, files, quarantine
from storage.columns import complete, newest
from storage.errors import StorageError
from storage.features import FeatureTable
from storage.shards import write_shard

TARGET_BYTES = 128 << 20


@dataclass(frozen=True)
class ExtractorStatus:
    """What a table holds of one extractor."""

    done: int  # clips all of whose segments are there
    stale: int  # contents (of all segments or some) that a reader passes over, or that the sources do not have any more
    partial: int  # clips of which some segments are there and no content is whole
    quarantined: dict[str, int] = field(default_factory=dict)  # clips by kind of their last failure
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Status:
    """What a table holds."""

    version: int
    versions: int  # versions that can be read
    extractors: dict[str, ExtractorStatus]


def status(uri: str, clips: pa.Table | None = None) -> Status:
    """Count what is in a table.

    Parameters
    ----------
    clips
        CLIPS of the sources, to count as stale what they hold with other content by now.
    """
    table = FeatureTable(uri)
    opened = delta.open_table(table.features_uri)
    keys = table.keys(times=True)
    failed = quarantine.standing(quarantine.read(uri), keys)
    active = delta.active_files(opened) if opened is not None else None
    owners = active["partition.extractor"] if active is not None and active.num_rows else None
    names = {*keys["extractor"].to_pylist(), *failed["extractor"].to_pylist()}
    out = {}
    for name in sorted(names):
        mine = keys.filter(pc.equal(keys["extractor"], name))
        whole = complete(mine)
        ids = whole["clip_id"].unique()
        kept = newest(whole)
        if clips is not None:
            now = clips.select(["clip_id", "content"])
            listed = kept.filter(pc.is_in(kept["clip_id"], now["clip_id"].combine_chunks()))
            outdated = listed.num_rows - listed.join(now, keys=["clip_id", "content"], join_type="inner").num_rows
        else:
            outdated = 0
        contents = mine.group_by(["clip_id", "content"]).aggregate([])
        partial = len(mine["clip_id"].unique()) - len(ids)
        kinds = failed.filter(pc.equal(failed["extractor"], name))["kind"].combine_chunks().value_counts().to_pylist()
        in_files = active.filter(pc.equal(owners, name)) if active is not None and owners is not None else None
        out[name] = ExtractorStatus(
            done=len(ids),
            stale=contents.num_rows - kept.num_rows + outdated,
            partial=partial,
            quarantined={kind["values"]: kind["counts"] for kind in kinds},
            files=in_files.num_rows if in_files is not None else 0,
            bytes=pc.sum(in_files["size_bytes"]).as_py() or 0 if in_files is not None else 0,
        )
    version = int(opened.version()) if opened is not None else -1
    return Status(version, len(opened.history()) if opened is not None else 0, out)


def compact(uri: str, *, target_bytes: int = TARGET_BYTES) -> tuple[int, int]:
    """Merge small files into files of about target_bytes; returns (files before, files after).

    Old versions stay readable until vacuum. Rows and what readers see stay the same.
    """
    table = FeatureTable(uri)
    opened = _opened(table)
    active = delta.active_files(opened)
    removed: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for name in sorted(set(active["partition.extractor"].to_pylist())):
        mine = active.filter(pc.equal(active["partition.extractor"], name)).sort_by("min.clip_id")
        for group in _groups(mine.to_pylist(), target_bytes):
            if len(group) > 1:
                rows = pa.concat_tables([_rows(table.features_uri, item["path"]) for item in group])
                shards.append(write_shard(_distinct(rows), uri, name))
                removed += [_file(item, name) for item in group]
    if removed:
        commits.replace(uri, removed, shards, "compact")
    return active.num_rows, active.num_rows - len(removed) + len(shards)


def _groups(items: list[dict[str, Any]], target: int) -> list[list[dict[str, Any]]]:
    groups: list[list[dict[str, Any]]] = [[]]
    held = 0
    for item in items:
        if item["size_bytes"] >= target // 2:
            continue
        if held + item["size_bytes"] > target:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += item["size_bytes"]
    return groups


def _distinct(rows: pa.Table) -> pa.Table:
    """One row per (clip_id, segment, num_segments, content) and set of directions: the newest."""
    place = pa.array(range(rows.num_rows), pa.int64())
    keys = rows.select(["clip_id", "segment", "num_segments", "content", "created_at"]).append_column("place", place)
    for direction in ("forward", "reverse"):
        keys = keys.append_column(direction, rows[direction].is_valid())
    keys = keys.sort_by([("created_at", "ascending"), ("place", "ascending")])
    by = ["clip_id", "segment", "num_segments", "content", "forward", "reverse"]
    last = keys.group_by(by, use_threads=False).aggregate([("place", "last")])
    return rows if last.num_rows == rows.num_rows else rows.take(last["place_last"])


def drop_stale(uri: str, *, extractors: Sequence[str] | None = None) -> int:
    """Remove rows of contents that a reader passes over for a newer complete one; returns their number.

    Only on request: a version of before pins the old rows until vacuum removes their files.
    """
    table = FeatureTable(uri)
    opened = _opened(table)
    active = delta.active_files(opened)
    keys = table.keys(times=True)
    kept = newest(complete(keys))
    removed: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    dropped = 0
    for item in active.to_pylist():
        name = item["partition.extractor"]
        if extractors is not None and name not in extractors:
            continue
        mine = kept.filter(pc.equal(kept["extractor"], name))
        ids, contents, times = (mine[column].combine_chunks() for column in ("clip_id", "content", "created_at"))
        with delta.open_parquet(table.features_uri, item["path"]) as file:
            small = file.read(columns=["clip_id", "content", "created_at"])
        place = pc.index_in(small["clip_id"], value_set=ids)
        # Segments newer than the complete content, or of a clip without one, stay: a run may be adding the others.
        newer = pc.greater(small["created_at"], pc.take(times, place))
        stay = pc.fill_null(pc.or_(pc.equal(pc.take(contents, place), small["content"]), newer), True)
        gone = small.num_rows - (pc.sum(stay).as_py() or 0)
        if not gone:
            continue
        dropped += gone
        removed.append(_file(item, name))
        if gone < small.num_rows:
            shards.append(write_shard(_rows(table.features_uri, item["path"]).filter(stay), uri, name))
    if removed:
        commits.replace(uri, removed, shards, "drop stale")
    return dropped


def vacuum(
    uri: str, *, grace_hours: float = 168, keep_versions: Sequence[int] = (), dry_run: bool = False
) -> list[str]:
    """Delete files that no reader of the newest version needs, once they are older than a grace period.

    These are files that a compaction or drop_stale replaced, and shards that were written and never committed. The
    grace period protects runs that are going on and readers of recent versions.

    Parameters
    ----------
    grace_hours
        Age from which a file may go.
    keep_versions
        Delta versions that must stay readable (what a registered model was trained on, say).
    dry_run
        Tell only.

    Returns
    -------
    list of str
        The files, below features/ and quarantine/.
    """
    if grace_hours < 0:
        raise StorageError(f"the grace period cannot be negative: {grace_hours} hours")
    gone = []
    for part in ("features", "quarantine"):
        opened = delta.open_table(files.join(uri, part))
        if opened is None:
            continue
        with files.explained(uri):
            found = opened.vacuum(
                retention_hours=int(grace_hours),
                dry_run=dry_run,
                enforce_retention_duration=False,
                full=True,
                keep_versions=list(keep_versions) or None if part == "features" else None,
            )
        gone += [f"{part}/{path}" for path in found]
    return gone


def _opened(table: FeatureTable) -> Any:
    opened = delta.open_table(table.features_uri)
    if opened is None:
        raise StorageError(f"{table.uri} holds no features")
    return opened


def _file(item: dict[str, Any], extractor: str) -> dict[str, Any]:
    return {"path": item["path"], "size": item["size_bytes"], "partition": {"extractor": extractor}}


def _rows(features_uri: str, path: str) -> pa.Table:
    with delta.open_parquet(features_uri, path) as file:
        return file.read()
