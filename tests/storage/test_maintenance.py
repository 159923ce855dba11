import os

import pytest

from storage import commits, maintenance
from storage.errors import StorageError
from storage.features import FeatureTable
from storage.shards import write_shard
from storage.sources import CLIPS
from tests.storage.rows import failed, row, table, windows


def commit(uri, *shards, bad=None):
    added = [write_shard(shard, uri, "e-1") for shard in shards]
    return commits.commit(uri, added, bad, "app", commits.committed(uri, "app") + 1, "run")


def age(tmp_path, hours=48):
    for path in tmp_path.rglob("*.parquet"):
        stamp = path.stat().st_mtime - hours * 3600
        os.utime(path, (stamp, stamp))


def test_status_counts_every_clip_once(tmp_path):
    uri = str(tmp_path)
    assert maintenance.status(uri).extractors == {}
    commit(uri, table(row("a"), row("b", content="old", at=1), row("p", num_segments=2)), bad=failed("q", "r"))
    commit(uri, table(row("b", content="new", at=2)), bad=failed("s", kind="decode_timeout"))
    found = maintenance.status(uri)
    mine = found.extractors["e-1"]
    assert (mine.done, mine.stale, mine.partial) == (2, 2, 1)
    assert mine.quarantined == {"decode_error": 2, "decode_timeout": 1}
    assert (mine.files, found.version, found.versions) == (2, 2, 3)
    assert mine.bytes == sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.parquet"))
    sources = CLIPS.empty_table().from_pylist([{"clip_id": "a", "content": "newer"}], schema=CLIPS)
    assert maintenance.status(uri, sources).extractors["e-1"].stale == 3


def test_compaction_merges_small_files_and_readers_see_the_same(tmp_path):
    uri = str(tmp_path)
    for index in range(5):
        commit(uri, table(row(f"{index}", forward=windows([0, 4], index)), row("twice", at=index)))
    before = FeatureTable(uri).load(["3", "0", "twice"], "forward", "e-1")
    pinned = FeatureTable(uri).version()
    assert maintenance.compact(uri) == (5, 1)
    assert maintenance.compact(uri) == (1, 1)
    after = FeatureTable(uri).load(["3", "0", "twice"], "forward", "e-1")
    assert after.features.tolist() == before.features.tolist()
    assert FeatureTable(uri).keys().num_rows == 6
    assert FeatureTable(uri).load(["3"], "forward", "e-1", version=pinned).num_windows.tolist() == [2]
    # A run that was going on meanwhile commits as if nothing had happened.
    commit(uri, table(row("later")))
    assert maintenance.status(uri).extractors["e-1"].done == 7


def test_large_files_are_left_alone(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a")), table(row("b")))
    assert maintenance.compact(uri, target_bytes=100) == (2, 2)


def test_stale_rows_go_on_request_only(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a", content="old", at=1), row("b"), row("p", num_segments=2)))
    commit(uri, table(row("a", content="new", at=2)))
    maintenance.compact(uri)
    assert FeatureTable(uri).keys().num_rows == 4
    assert maintenance.drop_stale(uri) == 1
    assert maintenance.drop_stale(uri) == 0
    kept = FeatureTable(uri).keys()
    assert sorted(zip(kept["clip_id"].to_pylist(), kept["content"].to_pylist(), strict=True)) == [
        ("a", "new"),
        ("b", "c0"),
        ("p", "c0"),
    ]


def test_segments_newer_than_what_readers_get_are_not_stale(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a", content="old", num_segments=2, at=1), row("a", content="read", at=2)))
    commit(uri, table(row("a", content="coming", num_segments=2, at=3)))
    assert maintenance.drop_stale(uri) == 1
    assert sorted(FeatureTable(uri).keys()["content"].to_pylist()) == ["coming", "read"]


def test_vacuum_removes_what_was_never_committed_or_was_replaced_after_a_grace_period(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a")), table(row("b")), bad=failed("q"))
    pinned = FeatureTable(uri).version()
    orphan = write_shard(table(row("orphan")), uri, "e-1")["path"]
    maintenance.compact(uri)
    assert maintenance.vacuum(uri, grace_hours=24) == []
    age(tmp_path)
    assert maintenance.vacuum(uri, grace_hours=24, dry_run=True) == [f"features/{orphan}"]
    assert (tmp_path / "features" / orphan).exists()
    assert maintenance.vacuum(uri, grace_hours=24) == [f"features/{orphan}"]
    assert not (tmp_path / "features" / orphan).exists()
    assert maintenance.vacuum(uri, grace_hours=0, keep_versions=[pinned]) == []
    assert FeatureTable(uri).load(["b"], "forward", "e-1", version=pinned).num_windows.tolist() == [3]
    assert len(maintenance.vacuum(uri, grace_hours=0)) == 2
    assert FeatureTable(uri).load(["a", "b"], "forward", "e-1").num_windows.tolist() == [3, 3]
    with pytest.raises(StorageError, match="vacuumed"):
        FeatureTable(uri).load(["b"], "forward", "e-1", version=pinned)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="holds no features"):
        maintenance.compact(str(tmp_path))
    assert maintenance.vacuum(str(tmp_path)) == []
    with pytest.raises(StorageError, match="negative"):
        maintenance.vacuum(str(tmp_path), grace_hours=-1)


def test_upkeep_of_a_table_in_s3(moto):
    uri = f"s3://{moto.bucket()}/t"
    commit(uri, table(row("a")))
    commit(uri, table(row("b")))
    assert maintenance.compact(uri) == (2, 1)
    assert maintenance.status(uri).extractors["e-1"].done == 2
    assert len(maintenance.vacuum(uri, grace_hours=0)) == 2
    assert FeatureTable(uri).load(["a", "b"], "forward", "e-1").clip_ids == ["a", "b"]
