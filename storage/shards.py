"""One Parquet file of features, under a name derived from what it holds, and the log entry that would add it."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import files
from storage.columns import DIRECTIONS, FEATURES
from storage.errors import StorageError

ROW_GROUP_BYTES = 8 << 20  # what a reader, or a writer beside all its rows, holds at once per file
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
    table = table.select(_STORED.names).cast(_STORED).combine_chunks()
    path = f"extractor={extractor_id}/{_digest(_sorted(table), run_id)}.parquet"
    target = files.join(uri, "features", path)
    size = files.size_of(target)
    if size is None:
        with files.writing(target) as file:
            _encode(_sorted(table), file)
            size = file.tell()
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


def _sorted(table: pa.Table) -> Iterator[pa.Table]:
    """Row groups in the order of clips. One at a time: all at once would be a copy of everything."""
    order = pc.sort_indices(table, [("clip_id", "ascending"), ("segment", "ascending")])
    rows = max(1, ROW_GROUP_BYTES // max(1, table.nbytes // table.num_rows))
    for start in range(0, table.num_rows, rows):
        yield table.take(order.slice(start, rows))


def _digest(groups: Iterable[pa.Table], run_id: str) -> str:
    """Digest of the rows, whenever they were made."""
    hasher = hashlib.blake2b(run_id.encode(), digest_size=16)

    class Sink:
        closed = False

        def write(self, data: bytes) -> int:
            hasher.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    facts = _STORED.remove(_STORED.get_field_index("created_at"))
    with pa.ipc.new_stream(pa.PythonFile(Sink(), "w"), facts) as stream:
        for group in groups:
            stream.write_table(group.select(facts.names).combine_chunks())
    return hasher.hexdigest()


def _encode(groups: Iterable[pa.Table], file: Any) -> None:
    with pq.ParquetWriter(
        file,
        _STORED,
        compression="zstd",
        # Bytes of equal weight side by side: float32 that came from bfloat16 packs as small as 16 bits would.
        use_byte_stream_split=_SPLIT,
        use_dictionary=["clip_id", "uri", "content", "decoder"],
        write_statistics=["clip_id", "segment", "created_at"],
        store_schema=False,
    ) as writer:
        for group in groups:
            writer.write_table(group)
