import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from storage import commits, delta, quarantine
from storage.columns import FEATURES
from storage.errors import FencedOut
from storage.features import FeatureTable
from storage.shards import write_shard
from tests import servers
from tests.storage.rows import failed, row, table


def visible(uri):
    return sorted(FeatureTable(uri).keys()["clip_id"].to_pylist())


def standing(uri):
    return quarantine.standing(quarantine.read(uri), FeatureTable(uri).keys(times=True))["clip_id"].to_pylist()


def test_nothing_is_seen_before_its_commit(tmp_path):
    uri = str(tmp_path)
    shard = write_shard(table(row("a")), uri, "e-1")
    assert visible(uri) == []
    assert commits.committed(uri, "app") == 0
    commits.commit(uri, [shard], failed("b"), "app", 1, "run")
    assert visible(uri) == ["a"]
    assert standing(uri) == ["b"]
    assert commits.committed(uri, "app") == 1


def test_repeating_ones_own_commit_changes_nothing(tmp_path):
    uri = str(tmp_path)
    shard = write_shard(table(row("a")), uri, "e-1")
    first = commits.commit(uri, [shard], failed("b"), "app", 1, "run")
    assert commits.commit(uri, [shard], failed("b"), "app", 1, "run") == first
    assert quarantine.read(uri).num_rows == 1
    # Added again under a later number, the shard is still there once.
    commits.commit(uri, [shard], None, "app", 2, "run")
    assert visible(uri) == ["a"]


def test_a_run_that_another_overtook_is_fenced_out_and_loses_nothing(tmp_path):
    uri = str(tmp_path)
    ours, theirs = commits.committed(uri, "app"), commits.committed(uri, "app")
    commits.commit(uri, [write_shard(table(row("a")), uri, "e-1")], None, "app", theirs + 1, "theirs")
    with pytest.raises(FencedOut, match="another run of 'app' is writing"):
        commits.commit(uri, [write_shard(table(row("b")), uri, "e-1")], failed("c"), "app", ours + 1, "ours")
    commits.commit(uri, [], None, "app", theirs + 2, "theirs")
    with pytest.raises(FencedOut):
        commits.commit(uri, [write_shard(table(row("b")), uri, "e-1")], None, "app", ours + 2, "ours")
    assert visible(uri) == ["a"]
    assert standing(uri) == []


def test_two_extractions_of_different_things_do_not_fence_each_other(tmp_path):
    uri = str(tmp_path)
    commits.commit(uri, [write_shard(table(row("a")), uri, "e-1")], None, "one", 1, "r1")
    commits.commit(uri, [write_shard(table(row("a")), uri, "e-2")], None, "two", 1, "r2")
    assert sorted(FeatureTable(uri).keys()["extractor"].to_pylist()) == ["e-1", "e-2"]


def test_of_two_commits_from_the_same_snapshot_one_wins(tmp_path, monkeypatch):
    uri = str(tmp_path)
    shards = [write_shard(table(row(name)), uri, "e-1") for name in "ab"]
    delta.ensure_table(f"{uri}/features", FEATURES, ["extractor"])
    both_looked = threading.Barrier(2)
    plain = delta.ensure_table

    def look(at, *rest):
        opened = plain(at, *rest)
        both_looked.wait(20)
        return opened

    monkeypatch.setattr(delta, "ensure_table", look)
    ended = []

    def run(name, shard):
        try:
            commits.commit(uri, [shard], None, "app", 1, name)
            ended.append("won")
        except FencedOut:
            ended.append("fenced")

    threads = [threading.Thread(target=run, args=(f"r{i}", shard)) for i, shard in enumerate(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["fenced", "won"]
    assert len(visible(uri)) == 1


def test_an_answer_lost_after_the_commit_is_not_a_failure(moto):
    uri = f"s3://{moto.bucket()}/t"
    delta.ensure_table(f"{uri}/features", FEATURES, ["extractor"])
    shard = write_shard(table(row("a")), uri, "e-1")
    with (
        pytest.MonkeyPatch.context() as patch,
        servers.FaultyProxy(moto.endpoint, rate=1, limit=1, only=("PUT",), faults=("lost",)) as proxy,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        commits.commit(uri, [shard], None, "app", 1, "run")
        assert proxy.injected == 1
    assert visible(uri) == ["a"]


def test_a_driver_killed_between_the_two_commits_leaves_each_clip_once(tmp_path):
    uri = str(tmp_path)
    code = """
import os, sys
from storage import commits, quarantine
from storage.shards import write_shard
from tests.storage.rows import failed, row, table
quarantine.append = lambda *a, **k: os.kill(os.getpid(), 9)
commits.commit(sys.argv[1], [write_shard(table(row("a")), sys.argv[1], "e-1")], failed("b"), "app", 1, "r1")
"""
    assert subprocess.run([sys.executable, "-c", code, uri], check=False).returncode == -9
    assert (visible(uri), standing(uri)) == (["a"], [])
    # The next run finds b in neither table and tries it again.
    commits.commit(uri, [], failed("b"), "app", commits.committed(uri, "app") + 1, "r2")
    assert (visible(uri), standing(uri)) == (["a"], ["b"])


def test_a_clip_that_succeeds_later_leaves_quarantine(tmp_path):
    uri = str(tmp_path)
    commits.commit(uri, [], failed("a", "b", at=1), "app", 1, "r1")
    commits.commit(uri, [write_shard(table(row("a", at=0)), uri, "e-1")], failed("b", attempt=2, at=3), "app", 2, "r2")
    assert standing(uri) == ["b"]
    kept = quarantine.standing(quarantine.read(uri), FeatureTable(uri).keys(times=True))
    assert kept["attempt"].to_pylist() == [2]


def test_a_clip_that_was_repaired_leaves_quarantine_and_one_that_broke_enters_it(tmp_path):
    uri = str(tmp_path)
    commits.commit(uri, [], failed("repaired", content="bad", at=1), "app", 1, "r1")
    shard = write_shard(table(row("repaired", content="good", at=2), row("broken", content="good", at=2)), uri, "e-1")
    commits.commit(uri, [shard], failed("broken", content="bad", at=3), "app", 2, "r2")
    assert standing(uri) == ["broken"]


def test_several_processes_may_make_the_table_at_once(tmp_path):
    code = "import sys; from storage import delta; from storage.columns import FEATURES; sys.stdin.readline(); "
    code += "print(delta.ensure_table(sys.argv[1], FEATURES, ['extractor']).version())"
    command = [sys.executable, "-c", code, str(tmp_path / "features")]
    made = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in made:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in made] == ["0", "0", "0"]


def test_commits_to_s3_are_fenced_too(s3):
    uri = f"s3://{s3.bucket()}/t"
    commits.commit(uri, [write_shard(table(row("a")), uri, "e-1")], failed("b"), "app", 1, "theirs")
    with pytest.raises(FencedOut):
        commits.commit(uri, [write_shard(table(row("c")), uri, "e-1")], None, "app", 1, "ours")
    assert (visible(uri), standing(uri)) == (["a"], ["b"])


def test_the_log_says_which_run_committed(tmp_path):
    uri = str(tmp_path)
    commits.commit(uri, [write_shard(table(row("a")), uri, "e-1")], None, "app", 1, "run-7")
    assert delta.open_table(f"{uri}/features").history(1)[0]["run_id"] == "run-7"


def test_quarantine_keeps_every_attempt(tmp_path):
    uri = str(tmp_path)
    for attempt in (1, 2):
        quarantine.append(uri, failed("a", attempt=attempt, at=attempt))
    rows = quarantine.read(uri, "e-1")
    assert sorted(rows["attempt"].to_pylist()) == [1, 2]
    assert quarantine.attempts(rows).to_pylist() == [
        {"clip_id": "a", "content": "c0", "extractor": "e-1", "attempts": 2}
    ]
    assert quarantine.read(uri, "other").num_rows == 0
    assert pc.all(pc.is_valid(rows["detail"])).as_py()
    assert isinstance(rows, pa.Table)
