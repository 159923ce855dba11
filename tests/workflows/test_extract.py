"""Extraction end to end on a real Ray: what is missing is done, once, and one bad file stops nothing."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import StorageError
from storage.features import FeatureTable
from storage.runs import read_runs
from tasks.decode_rows import decode_rows
from tasks.shard import Written, write_rows
from tests import videos
from tests.pipeline import (
    BAD_READER,
    OPTIONS,
    SETTINGS,
    account,
    alone,
    assert_nothing_to_do,
    extract_all,
    local_ray,
    many,
    tiny,
    vectors,
)
from tests.videos import encode
from workflows import cli, waiting
from workflows.extract import listed, planned, run
from workflows.extract_report import Progress


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[str]:
    with local_ray() as address:
        yield address


def good_files(folder: Path) -> dict[str, int]:
    """Clips that must come out well, by clip id: their number of frames."""
    encode(folder / "plain.mp4", frames=40, size=(80, 48))
    encode(folder / "мой клип" / "笑 顔 #1 100%.mp4", frames=18)
    encode(folder / "one frame.mp4", frames=1)
    encode(folder / "short.webm", "vp9", frames=9)
    encode(folder / "av1.mkv", "av1", frames=20)
    encode(folder / "uneven.mkv", frames=21, uneven=True)
    encode(folder / "ten bit.mkv", "hevc10", frames=17)
    encode(folder / "renamed.mp4", frames=16).rename(folder / "renamed.avi")
    videos.image_folder(folder / "pictures", 12)
    frames = {"plain": 40, "мой клип/笑 顔 #1 100%": 18, "one frame": 1, "short": 9, "av1": 20, "uneven": 21}
    return frames | {"ten bit": 17, "renamed": 16, "pictures": 12}


def bad_files(folder: Path) -> dict[str, set[str]]:
    """Clips that must not, by clip id: what may become of them."""
    videos.truncate(encode(folder / "truncated.mp4", frames=30, faststart=True))
    videos.truncate(encode(folder / "no index.mp4", frames=30))
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("these are words, not a video\n" * 50)
    videos.audio_only(folder / "audio.mp4")
    corrupt = encode(folder / "corrupt.mp4", frames=60, faststart=True)
    videos.flip_bytes(corrupt, np.random.default_rng(1), 2000, start=0.4)
    damaged = {"frame_count_mismatch", "decode_error"}
    return {
        "truncated": damaged,
        "no index": damaged,
        "zero": {"empty"},
        "text": {"decode_error"},
        "audio": {"no_video_stream"},
        "corrupt": damaged | {"features"},
    }


def test_one_bad_file_of_every_kind_stops_nothing_and_harms_no_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = good_files(tmp_path / "all")
    shutil.copytree(tmp_path / "all", tmp_path / "good")
    bad = bad_files(tmp_path / "all")
    report = extract_all(tmp_path / "all", tmp_path / "table")
    found = account(tmp_path / "table")
    assert set(found) == set(good) | set(bad)
    assert {clip_id: found[clip_id] for clip_id in good} == dict.fromkeys(good, "features")
    for clip_id, outcomes in bad.items():
        assert found[clip_id] in outcomes, clip_id
    assert report.done + sum(report.failed.values()) == len(found)

    expected = alone(tmp_path / "good")
    for clip_id, frames in good.items():
        check_equal(vectors(tmp_path / "table", clip_id), expected[clip_id], clip_id)
        assert len(expected[clip_id]["forward high"]) == max(1, -(-(frames - 16) // 4) + 1)

    assert_nothing_to_do(tmp_path / "all", tmp_path / "table", times=20)
    capsys.readouterr()
    assert cli.run(["extract", str(tmp_path / "all"), "--features", str(tmp_path / "table"), *OPTIONS, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["done"], again["planned"]["known"]) == (0, report.done)
    runs = read_runs(str(tmp_path / "table"))
    assert len(runs) == 22  # one, twenty, and the command line's
    assert runs[0]["failed"] == report.failed
    assert {"decode", "wait", "forward", "write", "commit"} <= set(runs[0]["seconds"])
    assert runs[0]["windows"] == report.windows > 0


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], clip_id: str) -> None:
    for name, values in expected.items():
        assert np.array_equal(found[name], values), f"{clip_id}: {name}"


def test_a_decoder_that_hangs_or_dies_costs_its_own_clip_only(tmp_path: Path) -> None:
    names = [f"{i:02d}" for i in range(44)]
    many(tmp_path / "v", [*names, "hang", "segfault", "abort", "half"])
    # Three rows to a block here: each of the four has neighbours that its decoder would take along.
    extract_all(tmp_path / "v", tmp_path / "t", decode=BAD_READER, decode_timeout_s=5.0)
    kinds = {"hang": "decode_timeout", "segfault": "decode_crash", "abort": "decode_crash", "half": "decode_crash"}
    assert account(tmp_path / "t") == dict.fromkeys(names, "features") | kinds
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def die_once(rows: pa.Table, *, marker: str, **how: Any) -> pa.Table:
    """Decode; where a clip is named "killer", first kill the forward worker, then the process that this runs in."""
    if "killer" in rows["clip_id"].to_pylist():
        for victim in ("actor", "self"):
            try:
                os.close(os.open(f"{marker}-{victim}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            for pid in forward_workers() if victim == "actor" else [os.getpid()]:
                os.kill(pid, signal.SIGKILL)
    return decode_rows(rows, **how)


def forward_workers() -> list[int]:
    """Processes of the forward pool that belong to the same Ray as this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"ExtractFeatures" in title and parent == os.getppid():
            found.append(int(path.name))
    return found


def test_a_killed_worker_process_loses_no_clip_and_doubles_none(tmp_path: Path) -> None:
    names = [f"{i:02d}" for i in range(40)]
    many(tmp_path / "v", [*names, "killer"])
    marker = str(tmp_path / "killed")
    report = extract_all(
        tmp_path / "v", tmp_path / "t", decode=partial(die_once, marker=marker), batch_clips=4, shard_bytes=1
    )
    assert Path(f"{marker}-actor").exists()
    assert Path(f"{marker}-self").exists()
    assert report.done == 41
    assert account(tmp_path / "t") == dict.fromkeys([*names, "killer"], "features")
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def test_a_process_that_dies_writing_a_shard_loses_no_clip_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i:02d}" for i in range(8)]
    many(tmp_path / "v", names)
    marker = tmp_path / "killed"

    def write_or_die(*blocks: Any, **how: Any) -> Written:
        """A shard, whose process dies the first time, when the file is written and nobody knows yet."""
        written = write_rows(*blocks, **how)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    monkeypatch.setattr("tasks.shard.write_rows", write_or_die)
    monkeypatch.setattr("workflows.extract_stream.one_machine", lambda: False)  # so that it is not this process
    report = extract_all(tmp_path / "v", tmp_path / "t", batch_clips=4, shard_bytes=1)
    assert marker.exists()
    assert report.done == len(names)
    assert account(tmp_path / "t") == dict.fromkeys(names, "features")
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def test_a_run_that_finds_no_room_on_the_cluster_says_so_and_starts_when_there_is_some(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class OtherRun:
        def holds(self) -> bool:
            return True

    other = OtherRun.remote()
    assert ray.get(other.holds.remote())
    said = []

    def say(_: Progress, what: str) -> None:
        said.append(what)
        ray.kill(other)

    monkeypatch.setattr(waiting, "WAIT_S", 0.2)
    monkeypatch.setattr(Progress, "say", say)
    os.link(tmp_path / "v" / "a.mp4", tmp_path / "v" / "d.mp4")
    assert extract_all(tmp_path / "v", tmp_path / "t").done == 1
    assert said[0].startswith("waiting: no worker of this run has found room for 0 s (0 of 2 CPUs free)")


def without_space(rows: pa.Table, **_: Any) -> pa.Table:
    """A machine whose disk is full."""
    raise StorageError(f"no space left for copies of {rows.num_rows} clips")


def test_what_a_user_puts_right_comes_out_of_a_worker_as_it_is(tmp_path: Path) -> None:
    many(tmp_path / "v", ["a", "b"])
    with pytest.raises(StorageError, match=r"^no space left for copies of 1 clips$"):
        extract_all(tmp_path / "v", tmp_path / "t", decode=without_space)
    assert account(tmp_path / "t") == {}
    again = planned(listed([str(tmp_path / "v")]), str(tmp_path / "t"), tiny(), SETTINGS)
    assert again.counts["new"] == again.todo.num_rows == 2


def test_a_clip_that_changes_after_planning_is_taken_by_the_next_run(tmp_path: Path) -> None:
    many(tmp_path / "v", ["a", "b"])
    planned = listed([str(tmp_path / "v")])
    encode(tmp_path / "new.mp4", frames=30).replace(tmp_path / "v" / "b.mp4")
    run(planned, str(tmp_path / "t"), tiny(), settings=SETTINGS)
    assert account(tmp_path / "t") == {"a": "features", "b": "changed"}
    report = extract_all(tmp_path / "v", tmp_path / "t")
    assert (report.planned["changed"], report.done) == (1, 1)
    assert account(tmp_path / "t") == {"a": "features", "b": "features"}
    assert len(vectors(tmp_path / "t", "b")["forward high"]) == 5
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of three clips and its table."""
    root = tmp_path_factory.mktemp("extracted")
    many(root / "v", ["a", "b", "c"])
    assert extract_all(root / "v", root / "t").done == 3
    return root


@pytest.fixture
def known(extracted: Path, tmp_path: Path) -> Path:
    """A copy of it, which is as well known."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")
    return tmp_path


def test_only_what_is_new_or_changed_is_extracted_and_what_is_gone_stays_known(known: Path, tmp_path: Path) -> None:
    before = FeatureTable(str(tmp_path / "t")).version()
    first = vectors(tmp_path / "t", "b")
    encode(tmp_path / "new.mp4", frames=24).replace(tmp_path / "v" / "b.mp4")
    os.link(tmp_path / "v" / "b.mp4", tmp_path / "v" / "d.mp4")
    (tmp_path / "v" / "c.mp4").unlink()
    report = extract_all(tmp_path / "v", tmp_path / "t")
    assert report.planned == {"new": 1, "changed": 1, "retried": 0, "known": 1, "quarantined": 0}
    assert set(account(tmp_path / "t")) == {"a", "b", "c", "d"}
    assert len(vectors(tmp_path / "t", "b")["forward"]) == 3 != len(first["forward"])
    # The version of before pins what a training read.
    pinned = FeatureTable(str(tmp_path / "t")).load(["b"], "forward", tiny().id, version=before)
    assert np.array_equal(pinned.features, first["forward"])
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def test_a_clip_that_changes_and_changes_back_is_read_as_it_is_without_extracting_it_again(
    known: Path, tmp_path: Path
) -> None:
    first = vectors(tmp_path / "t", "b")["forward"]
    os.link(tmp_path / "v" / "b.mp4", tmp_path / "kept.mp4")
    encode(tmp_path / "new.mp4", frames=24).replace(tmp_path / "v" / "b.mp4")
    assert extract_all(tmp_path / "v", tmp_path / "t").done == 1
    assert len(vectors(tmp_path / "t", "b")["forward"]) == 3
    (tmp_path / "kept.mp4").replace(tmp_path / "v" / "b.mp4")
    back = extract_all(tmp_path / "v", tmp_path / "t")
    assert (back.planned["known"], back.done, back.recalled) == (3, 0, 1)
    assert np.array_equal(vectors(tmp_path / "t", "b")["forward"], first)
    assert account(tmp_path / "t") == dict.fromkeys("abc", "features")
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def test_a_new_extractor_extracts_everything_beside_the_old_features(known: Path, tmp_path: Path) -> None:
    old = vectors(tmp_path / "t", "a")["forward"]
    report = extract_all(tmp_path / "v", tmp_path / "t", seed=1)
    assert report.planned["new"] == 3
    assert account(tmp_path / "t") == account(tmp_path / "t", tiny(1).id) == dict.fromkeys("abc", "features")
    assert np.array_equal(vectors(tmp_path / "t", "a")["forward"], old)
    assert not np.array_equal(vectors(tmp_path / "t", "a", tiny(1).id)["forward"], old)
    assert set(FeatureTable(str(tmp_path / "t")).extractors()) == {tiny().id, tiny(1).id}
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")


def test_a_failing_clip_is_tried_as_often_as_allowed_and_judged_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path / "v", ["a", "b", "c"])
    for name in ("bad", "worse"):
        (tmp_path / "v" / f"{name}.mp4").write_text("no video")
    command = ["extract", str(tmp_path / "v"), "--features", str(tmp_path / "t"), *OPTIONS, "--json"]

    def reported(*more: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run([*command, *more]) == code
        return json.loads(capsys.readouterr().out)

    assert reported("--dry-run")["planned"]["new"] == 5
    assert not (tmp_path / "t").exists()
    assert reported("--max-failure-rate", "0.4")["failed"] == {"decode_error": 2}
    assert reported()["planned"] == {"new": 0, "changed": 0, "retried": 0, "known": 3, "quarantined": 2}
    assert reported("--max-attempts", "2", code=1)["planned"]["retried"] == 2
    assert reported("--max-attempts", "2")["planned"]["quarantined"] == 2
    failed = {"bad": "decode_error", "worse": "decode_error"}
    assert account(tmp_path / "t") == dict.fromkeys("abc", "features") | failed
    encode(tmp_path / "mended.mp4", frames=6).replace(tmp_path / "v" / "bad.mp4")
    last = reported("--retry-quarantined", "--max-failure-rate", "0.4", code=1)
    assert (last["planned"]["changed"], last["planned"]["retried"]) == (1, 1)
    assert (last["done"], last["failed"]) == (1, {"decode_error": 1})
    assert account(tmp_path / "t") == dict.fromkeys(["a", "b", "c", "bad"], "features") | {"worse": "decode_error"}


def test_a_long_video_in_segments_gives_the_features_of_the_whole_exactly(tmp_path: Path) -> None:
    encode(tmp_path / "v" / "long.mp4", frames=203)
    encode(tmp_path / "v" / "phone.mp4", frames=150, size=(48, 32), rotation=90)
    encode(tmp_path / "v" / "av1.mkv", "av1", frames=130)
    report = extract_all(tmp_path / "v", tmp_path / "cut", segment_frames=64)
    assert (report.segments, report.done) == (3 + 3 + 2, 3)
    for clip_id, whole in alone(tmp_path / "v").items():
        check_equal(vectors(tmp_path / "cut", clip_id), whole, clip_id)
    assert_nothing_to_do(tmp_path / "v", tmp_path / "cut", segment_frames=64)


def test_a_hundred_damaged_videos_each_end_in_features_or_quarantine(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    suffixes = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "av1": ".mkv", "mpeg4": ".avi"}
    names = []
    for codec, suffix in suffixes.items():
        whole = encode(tmp_path / f"{codec}{suffix}", codec, frames=24)
        for index in range(int(os.environ.get("PTHNET_MUTATIONS", "100")) // len(suffixes)):
            path = tmp_path / "v" / f"{codec}-{index}{suffix}"
            path.parent.mkdir(exist_ok=True)
            videos.mutate(Path(shutil.copy(whole, path)), rng)
            names.append(path.stem)
        shutil.copy(whole, tmp_path / "v" / f"{codec}-whole{suffix}")
    report = extract_all(tmp_path / "v", tmp_path / "t")
    found = account(tmp_path / "t")
    assert set(found) == {*names, *(f"{codec}-whole" for codec in suffixes)}
    assert {found[f"{codec}-whole"] for codec in suffixes} == {"features"}
    assert report.done + sum(report.failed.values()) == len(found)
    assert_nothing_to_do(tmp_path / "v", tmp_path / "t")
