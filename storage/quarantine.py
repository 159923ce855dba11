"""What could not be extracted, why, and how often it was tried: a Delta table beside the features."""

import hashlib
import io
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import delta, files
from storage.columns import complete

QUARANTINE = pa.schema(
    [
        ("clip_id", pa.string()),
        ("segment", pa.int32()),
        ("uri", pa.string()),
        ("content", pa.string()),
        ("extractor", pa.string()),
        ("stage", pa.string()),  # list, decode, forward, import, ...
        ("kind", pa.string()),  # decode_error, decode_timeout, missing, ...
        ("detail", pa.string()),
        ("attempt", pa.int32()),  # 1 for the first
        ("run_id", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
_KEY = ["clip_id", "content", "extractor"]


def read(uri: str, extractor: str | None = None) -> pa.Table:
    """Every row ever quarantined beside the feature table at a URI."""
    at = files.join(uri, "quarantine")
    table = delta.open_table(at)
    if table is None:
        return QUARANTINE.empty_table()

    def one(_: int, path: str) -> pa.Table:
        with delta.open_parquet(at, path) as file:
            return file.read().select(QUARANTINE.names).cast(QUARANTINE)

    with files.explained(uri):
        paths = delta.active_files(table)["path"].to_pylist()
        rows = pa.concat_tables([QUARANTINE.empty_table(), *delta.each_file(paths, one)])
    return rows if extractor is None else rows.filter(pc.equal(rows["extractor"], extractor))


def standing(rows: pa.Table, keys: pa.Table) -> pa.Table:
    """The last failure of each (clip, extractor) that nothing has put right since.

    A failure is put right by features of the same content, whenever they were committed (a run may have died between
    its two commits), or by newer features of another content. A content that comes back has its failure entered anew.

    Parameters
    ----------
    rows
        QUARANTINE rows.
    keys
        FeatureTable.keys(times=True).
    """
    done = complete(keys)
    found = last(rows, ["clip_id", "extractor"])
    if not found.num_rows or not done.num_rows:
        return found
    found = found.join(done.select(_KEY), keys=_KEY, join_type="left anti")
    newest = done.group_by(["clip_id", "extractor"]).aggregate([("created_at", "max")])
    found = found.join(newest, keys=["clip_id", "extractor"], join_type="left outer")
    newer = pc.fill_null(pc.greater_equal(found["created_at_max"], found["at"]), False)
    return found.filter(pc.invert(newer)).select(QUARANTINE.names).sort_by("clip_id")


def last(rows: pa.Table, by: list[str]) -> pa.Table:
    """The last of the QUARANTINE rows that share the columns `by`."""
    if not rows.num_rows:
        return rows
    rows = rows.sort_by([*((name, "ascending") for name in by), ("at", "ascending"), ("attempt", "ascending")])
    rows = rows.combine_chunks()
    new = np.zeros(rows.num_rows, bool)
    for name in by:
        codes = rows[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        new[:-1] |= codes[1:] != codes[:-1]
    new[-1] = True
    return rows.filter(pa.array(new))


def attempts(rows: pa.Table) -> pa.Table:
    """How often each (clip_id, content, extractor) was tried: those three columns and attempts (int32)."""
    tried = rows.group_by(_KEY).aggregate([("attempt", "max")])
    return tried.rename_columns({"attempt_max": "attempts"})


def append(
    uri: str, rows: pa.Table, *, app_id: str | None = None, app_version: int | None = None, run_id: str = ""
) -> int | None:
    """Add rows to quarantine; with an app id and version, once for each version. Returns the Delta version."""
    from deltalake.exceptions import DeltaError
    from deltalake.transaction import AddAction, CommitProperties, Transaction

    if not rows.num_rows:
        return None
    rows = rows.select(QUARANTINE.names).cast(QUARANTINE)
    at = files.join(uri, "quarantine")
    table = delta.ensure_table(at, QUARANTINE)
    if app_id is not None and app_version is not None and (table.transaction_version(app_id) or 0) >= app_version:
        return int(table.version())
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", store_schema=False)
    data = buffer.getvalue()
    path = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.parquet"
    files.write_atomic(files.join(at, path), data)
    fence = [Transaction(app_id, app_version)] if app_id is not None and app_version is not None else None
    add = AddAction(path, len(data), {}, int(time.time() * 1000), True, json.dumps({"numRecords": rows.num_rows}))
    properties = CommitProperties(custom_metadata={"run_id": run_id}, app_transactions=fence)
    with files.explained(uri):
        try:
            # The same file added again is the same file, so what broke off may be asked for once more.
            delta.patiently(
                lambda: table.create_write_transaction([add], "append", table.schema(), commit_properties=properties)
            )
        except (DeltaError, OSError):
            # The answer may have been lost after the commit was made.
            latest = delta.open_table(at)
            if fence is None or latest is None or (latest.transaction_version(app_id) or 0) < (app_version or 0):
                raise
    delta.patiently(table.update_incremental)
    return int(table.version())


def row(**values: Any) -> dict[str, Any]:
    """A QUARANTINE row with every column, those not given null."""
    return {name: values.get(name) for name in QUARANTINE.names}
