"""The driver's end: what was written becomes visible, fenced, and is counted once."""

from pathlib import Path

import pytest

from storage import quarantine
from storage.commits import committed
from storage.errors import FencedOut
from storage.features import FeatureTable
from tasks.commit import Committer
from tasks.extract import ExtractFeatures
from tasks.shard import Written, write_rows
from tests.pipeline import account, decoded_rows, null, planned_rows

STAGE = ExtractFeatures(null(), measure=False)
APP = "app"


def write(folder: Path, rows, **failed: str) -> Written:
    done = STAGE(decoded_rows(rows, failed=failed))
    return write_rows(done, uri=str(folder), extractor_id=null().id, run_id="run")


def committer(folder: Path, **how) -> Committer:
    return Committer(str(folder), APP, committed(str(folder), APP), "run", **how)


def test_what_is_added_is_seen_once_it_is_committed(tmp_path: Path) -> None:
    mine = committer(tmp_path)
    mine.add(write(tmp_path, planned_rows(("a", "1"), ("bad", "2")), bad="decode_crash"))
    assert mine.waiting_bytes > 0
    assert account(tmp_path, null().id) == {}
    mine.commit()
    assert mine.waiting_bytes == 0
    assert account(tmp_path, null().id) == {"a": "features", "bad": "decode_crash"}
    assert (mine.totals.clips, dict(mine.totals.failed), mine.totals.tried) == (1, {"decode_crash": 1}, 2)
    assert mine.totals.seconds["commit"] > 0


def test_committing_nothing_makes_no_version(tmp_path: Path) -> None:
    mine = committer(tmp_path)
    mine.commit()
    assert FeatureTable(str(tmp_path)).version() == -1
    mine.add(write(tmp_path, planned_rows(("a", "1"))))
    mine.commit()
    version = FeatureTable(str(tmp_path)).version()
    mine.commit()
    assert (FeatureTable(str(tmp_path)).version(), mine.totals.commits) == (version, 1)


def test_several_writes_are_one_commit(tmp_path: Path) -> None:
    mine = committer(tmp_path)
    for name in "abc":
        mine.add(write(tmp_path, planned_rows((name, "1"))))
    mine.commit()
    assert committed(str(tmp_path), APP) == 1
    assert set(account(tmp_path, null().id)) == {"a", "b", "c"}


def test_a_long_clip_counts_when_its_last_segment_is_there_also_over_two_runs(tmp_path: Path) -> None:
    rows = planned_rows(("long", "c"), num_frames=200, segment_frames=64)
    first = committer(tmp_path)
    first.add(write(tmp_path, rows.slice(0, 1)))
    first.commit()
    assert (first.totals.clips, account(tmp_path, null().id)) == (0, {})
    second = committer(tmp_path, begun={("long", rows.num_rows): 1})
    second.add(write(tmp_path, rows.slice(1)))
    second.commit()
    assert (second.totals.clips, account(tmp_path, null().id)) == (1, {"long": "features"})


def test_a_clip_whose_segments_fail_counts_once(tmp_path: Path) -> None:
    rows = planned_rows(("long", "c"), num_frames=200, segment_frames=64)
    mine = committer(tmp_path)
    for row in range(rows.num_rows):
        mine.add(write(tmp_path, rows.slice(row, 1), long="decode_error"))
    mine.commit()
    assert dict(mine.totals.failed) == {"decode_error": 1}
    assert quarantine.read(str(tmp_path)).num_rows == rows.num_rows
    assert account(tmp_path, null().id) == {"long": "decode_error"}


def test_the_later_of_two_runs_is_fenced_out(tmp_path: Path) -> None:
    ours, theirs = committer(tmp_path), Committer(str(tmp_path), APP, 0, "theirs")
    theirs.add(write(tmp_path, planned_rows(("a", "1"))))
    theirs.commit()
    ours.add(write(tmp_path, planned_rows(("a", "1"), ("b", "2"))))
    with pytest.raises(FencedOut):
        ours.commit()
    assert account(tmp_path, null().id) == {"a": "features"}
