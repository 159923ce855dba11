"""One Parquet file of features, under a name derived from what it holds, and the log entry that would add it."""

import hashlib
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import files
from storage.columns import DIRECTIONS, FEATURES
from storage.errors import StorageError

ROW_GROUP_BYTES = 32 << 20  # what a reader holds at once per file
_STORED = pa.schema([field for field in FEATURES if field.name != "extractor"])  # Delta keeps a partition in the path
_SPLIT = [f"{direction}.features.list.element" for direction in DIRECTIONS]


def write_shard(table: pa.Table, uri: str, extractor_id: str, *, run_id: str = "") -> dict[str, Any]:
    """Write rows as one shard of the feature table at a URI. Readers see it once it is committed.

    The same rows get the same name, and a shard that is there is not written again, so a repeated write is harmless.
    When they were made does not count, unless the rows belong to one run (run_id), as recalls do.

    Returns
    -------
    dict
        path (below features/), size (bytes), rows, stats (JSON), partition, modified (ms): what commit needs.

    Raises
    ------
    StorageError
        For a table without rows or with other columns.
    OSError
        When the disk is full, say; nothing is left behind.
    """
    if missing := [name for name in _STORED.names if name not in table.column_names]:
        raise StorageError(f"rows of the feature table need the columns {missing}")
    if not table.num_rows:
        raise StorageError("a shard needs at least one row")
    table = table.select(_STORED.names).cast(_STORED).sort_by([("clip_id", "ascending"), ("segment", "ascending")])
    path = f"extractor={extractor_id}/{_digest(table, run_id)}.parquet"
    target = files.join(uri, "features", path)
    size = files.size_of(target)
    if size is None:
        data = _encode(table)
        files.write_atomic(target, data)
        size = len(data)
    first, last = (value.as_py() for value in pc.min_max(table["clip_id"]).values())
    stats = {
        "numRecords": table.num_rows,
        "minValues": {"clip_id": first},
        "maxValues": {"clip_id": last},
        "nullCount": {"clip_id": table["clip_id"].null_count},
    }
    return {
        "path": path,
        "size": size,
        "rows": table.num_rows,
        "stats": json.dumps(stats),
        "partition": {"extractor": extractor_id},
        "modified": int(time.time() * 1000),
    }


def _digest(table: pa.Table, run_id: str) -> str:
    """Digest of the rows, whenever they were made."""
    hasher = hashlib.blake2b(run_id.encode(), digest_size=16)

    class Sink:
        closed = False

        def write(self, data: bytes) -> int:
            hasher.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    facts = table.drop_columns(["created_at"]).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(Sink(), "w"), facts.schema) as stream:
        stream.write_table(facts)
    return hasher.hexdigest()


def _encode(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        # Bytes of equal weight side by side: float32 that came from bfloat16 packs as small as 16 bits would.
        use_byte_stream_split=_SPLIT,
        use_dictionary=["clip_id", "uri", "content", "decoder"],
        write_statistics=["clip_id", "segment", "created_at"],
        store_schema=False,
    ) as writer:
        per_row = max(1, table.nbytes // table.num_rows)
        writer.write_table(table, row_group_size=max(1, ROW_GROUP_BYTES // per_row))
    return sink.getvalue()
