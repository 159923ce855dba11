import errno
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files
from storage.errors import StorageError
from storage.shards import write_shard
from tests.storage.rows import row, table, windows


def test_the_same_rows_get_the_same_name_whenever_they_were_made(tmp_path):
    first = write_shard(table(row("a", at=1), row("b")), str(tmp_path), "e-1")
    again = write_shard(table(row("b"), row("a", at=9)), str(tmp_path), "e-1")
    other = write_shard(table(row("a", forward=windows([0], 7)), row("b")), str(tmp_path), "e-1")
    assert first["path"] == again["path"] != other["path"]
    assert first["size"] == again["size"] == (tmp_path / "features" / first["path"]).stat().st_size
    assert first["path"].startswith("extractor=e-1/")


def test_statistics_tell_rows_and_first_and_last_clip(tmp_path):
    stats = json.loads(write_shard(table(row("b"), row("ä"), row("a")), str(tmp_path), "e-1")["stats"])
    assert stats["numRecords"] == 3
    assert stats["minValues"] == {"clip_id": "a"}
    assert stats["maxValues"] == {"clip_id": "ä"}


def test_floats_are_split_by_byte_and_pack_as_small_as_half_precision(tmp_path):
    values = np.random.default_rng(0).standard_normal(64 * 1024).astype(np.float16).astype(np.float32)
    rows = []
    for index in range(64):
        part = values[index * 1024 : (index + 1) * 1024]
        starts = list(range(0, 16 * 4, 4))
        rows.append(row(f"{index}", reverse=None, forward={**windows(starts), "features": part.tolist()}))
    shard = write_shard(table(*rows), str(tmp_path), "e-1")
    metadata = pq.read_metadata(tmp_path / "features" / shard["path"]).row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    column = columns["forward.features.list.element"]
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.compression == "ZSTD"
    assert column.total_compressed_size < values.nbytes * 0.55


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on its disk"):
        write_shard(table(row("a")), str(tmp_path), "e-1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_write_that_the_system_breaks_off_leaves_nothing_behind(tmp_path):
    # A limit on the file size fails the write itself midway, as a disk does that fills up.
    code = """
import resource, sys
from storage.shards import write_shard
from tests.storage.rows import row, table
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    write_shard(table(*[row(f"{i}") for i in range(50)]), sys.argv[1], "e-1")
except OSError as error:
    print("OSError", error.errno)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["OSError", str(errno.EFBIG)]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_write_cut_short_is_never_seen(tmp_path, monkeypatch):
    target = str(tmp_path / "x" / "file")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(target, b"data")
    assert list((tmp_path / "x").iterdir()) == []


def test_rows_without_a_column_are_refused(tmp_path):
    with pytest.raises(StorageError, match="need the columns"):
        write_shard(pa.table({"clip_id": ["a"]}), str(tmp_path), "e-1")
    with pytest.raises(StorageError, match="at least one row"):
        write_shard(table(), str(tmp_path), "e-1")


def test_large_rows_are_read_in_bounded_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.shards.ROW_GROUP_BYTES", 2_000)
    shard = write_shard(table(*[row(f"{i:03d}") for i in range(60)]), str(tmp_path), "e-1")
    assert pq.read_metadata(tmp_path / "features" / shard["path"]).num_row_groups > 3
