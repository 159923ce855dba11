"""The write stage: what succeeded becomes one shard, the rest rows of quarantine, and nothing is lost between."""

import errno
from pathlib import Path

import pytest

from storage import files
from storage.errors import StorageError
from storage.quarantine import QUARANTINE
from tasks.extract import ExtractFeatures
from tasks.shard import Written, write_rows
from tests.pipeline import decoded_rows, null, planned_rows

STAGE = ExtractFeatures(null(), measure=False)


def write(folder: Path, *blocks, run_id: str = "run") -> Written:
    return write_rows(*blocks, uri=str(folder), extractor_id=null().id, run_id=run_id)


def test_rows_are_parted_into_a_shard_and_quarantine(tmp_path: Path) -> None:
    first = STAGE(decoded_rows(planned_rows(("a", "1"), ("bad", "2"), attempt=3), failed={"bad": "decode_crash"}))
    second = STAGE(decoded_rows(planned_rows(("b", "3"))))
    written = write(tmp_path, first, second)
    assert written.shard is not None
    assert (written.shard["rows"], written.clips, written.segments, written.windows) == (2, 2, 2, 8)
    assert (tmp_path / "features" / written.shard["path"]).stat().st_size == written.shard["size"]
    assert written.quarantine.schema == QUARANTINE
    (row,) = written.quarantine.to_pylist()
    assert (row["clip_id"], row["content"], row["kind"], row["stage"]) == ("bad", "2", "decode_crash", "decode")
    assert (row["attempt"], row["run_id"], row["extractor"]) == (3, "run", null().id)
    assert row["at"] is not None
    assert {"decode", "wait", "forward", "write"} <= set(written.seconds)


def test_failures_alone_make_no_shard(tmp_path: Path) -> None:
    written = write(tmp_path, STAGE(decoded_rows(planned_rows(("bad", "c")), failed={"bad": "empty"})))
    assert (written.shard, written.clips, written.quarantine.num_rows) == (None, 0, 1)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_repeated_write_is_the_same_shard(tmp_path: Path) -> None:
    rows = STAGE(decoded_rows(planned_rows(("a", "1"), ("b", "2"))))
    once, again = write(tmp_path, rows), write(tmp_path, rows, run_id="another")
    assert once.shard is not None
    assert again.shard is not None
    assert once.shard["path"] == again.shard["path"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_a_long_clip_is_counted_by_its_parts(tmp_path: Path) -> None:
    rows = STAGE(decoded_rows(planned_rows(("long", "c"), num_frames=200, segment_frames=64)))
    written = write(tmp_path, rows.slice(0, 2), STAGE(decoded_rows(planned_rows(("a", "c")))))
    assert (written.clips, written.parts, written.segments) == (1, [("long", rows.num_rows, 2)], 3)


def test_a_shard_that_cannot_be_written_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = STAGE(decoded_rows(planned_rows(("a", "1"))))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on its disk; free some and run the same command again"):
        write(tmp_path, rows)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
