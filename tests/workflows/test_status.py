"""What a table says about itself, and its upkeep, on the command line."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from storage import commits
from storage.features import FeatureTable
from storage.runs import write_run
from storage.shards import write_shard
from tests.storage.rows import failed, row, table
from workflows import cli
from workflows.status import REMEDIES, gather


def commit(uri: Path, *shards: Any, bad: Any = None) -> None:
    added = [write_shard(shard, str(uri), "e-1") for shard in shards]
    commits.commit(str(uri), added, bad, "app", commits.committed(str(uri), "app") + 1, "run")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    uri = tmp_path / "table"
    commit(uri, table(row("a"), row("b", content="old"), row("p", num_segments=2)), bad=failed("q", "r", attempt=2))
    commit(uri, table(row("b", content="new", at=1)), bad=failed("s", kind="decode_timeout"))
    write_run(str(uri), "20260101T000000-abc", {"clips": 6, "done": 3, "failed": {"decode_error": 2}, "wall_s": 1.5})
    return uri


def run(*arguments: object, code: int = 0) -> None:
    assert cli.run([str(argument) for argument in arguments]) == code


def test_status_shows_every_clip_by_where_it_is(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("status", features, "--json")
    facts = json.loads(capsys.readouterr().out)
    held = facts["extractors"]["e-1"]
    assert (held["done"], held["stale"], held["partial"], held["files"]) == (2, 2, 1, 2)
    assert held["bytes"] == sum(path.stat().st_size for path in (features / "features").rglob("*.parquet"))
    assert list(held["quarantined"]) == ["decode_error", "decode_timeout"]
    error = held["quarantined"]["decode_error"]
    assert (error["clips"], error["remedy"]) == (2, REMEDIES["decode_error"])
    assert [example["clip_id"] for example in error["examples"]] == ["q", "r"]
    assert (facts["version"], facts["versions"]) == (2, 3)
    assert facts["runs"][0]["run_id"] == "20260101T000000-abc"


def test_status_reads_like_a_page(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("status", features)
    shown = capsys.readouterr().out
    for part in ("version 2, 3 versions readable", "e-1", "in quarantine by e-1", "2 decode_error: damaged"):
        assert part in shown
    assert "q: cannot be read, tried 2 times" in shown
    assert "--retry-quarantined --decode-timeout SECONDS" in shown
    assert "20260101T000000-abc" in shown


def test_status_counts_what_changed_in_the_sources(tmp_path: Path, features: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"other bytes")
    found = gather(str(features), sources=[str(tmp_path / "v")], examples=0, runs=0)
    assert found["extractors"]["e-1"]["stale"] == 3
    assert found["runs"] == []
    assert found["extractors"]["e-1"]["quarantined"]["decode_error"]["examples"] == []


def test_status_of_nothing_says_how_to_make_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("status", tmp_path / "nothing", code=2)
    said = capsys.readouterr().err
    assert "holds no feature table; make one with pthnet extract" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "nothing").exists()


def test_every_way_to_fail_has_a_remedy() -> None:
    root = Path(__file__).resolve().parents[2]
    kinds = {"decode_error", "decode_crash", "decode_timeout", "no_video_stream", "empty", "missing", "changed"}
    kinds |= {"frame_count_mismatch", "out_of_memory", "access_denied", "unreachable", "not_finite"}
    text = (root / "tasks" / "decode.py").read_text() + (root / "tasks" / "extract.py").read_text()
    assert all(kind in text for kind in kinds)
    assert kinds <= set(REMEDIES)


def test_compact_merges_and_vacuum_deletes_what_was_replaced_or_never_committed(
    features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(table(row("orphan")), str(features), "e-1")
    torn = next((features / "features").rglob("*.parquet")).with_suffix(".parquet.0a1b2c3d.tmp")
    torn.write_bytes(b"left by a write that was killed")
    old = time.time() - 200 * 3600
    for path in features.rglob("*.*"):
        os.utime(path, (old, old))
    run("compact", features, "--json")
    assert json.loads(capsys.readouterr().out) == {"features": str(features), "files_before": 2, "files_after": 1}
    run("vacuum", features, "--dry-run", "--json")
    would = json.loads(capsys.readouterr().out)["files"]
    assert len(would) == 2  # never committed; what was replaced a moment ago may still be read
    assert torn.exists()
    run("vacuum", features, "--json")
    assert json.loads(capsys.readouterr().out)["files"] == would
    run("vacuum", features, "--grace-hours", "0", "--json")
    assert len(json.loads(capsys.readouterr().out)["files"]) == 2
    assert len(list((features / "features").rglob("*.parquet"))) == 1
    assert not torn.exists()
    assert FeatureTable(str(features)).load(["a", "b"], "forward", "e-1").num_windows.tolist() == [3, 3]


def test_vacuum_drops_stale_rows_on_request_only_and_keeps_young_files(
    features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("vacuum", features)
    run("vacuum", features, "--drop-stale", "--dry-run")
    assert FeatureTable(str(features)).keys().num_rows == 4
    assert "stale clips would be taken out" in capsys.readouterr().out
    run("vacuum", features, "--drop-stale")
    assert capsys.readouterr().out.splitlines() == ["1 stale rows taken out", "0 files deleted"]
    assert FeatureTable(str(features)).keys().num_rows == 3
    assert FeatureTable(str(features)).keys(version=2).num_rows == 4


@pytest.mark.parametrize("command", ["vacuum", "compact"])
def test_upkeep_of_nothing_is_refused_or_nothing(tmp_path: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    code = cli.run([command, str(tmp_path / "nothing")])
    assert code == (2 if command == "compact" else 0)
    assert "Traceback" not in capsys.readouterr().err
