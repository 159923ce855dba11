"""`pthnet synth`: an archive with its lists, the same from any number of workers, finished by running it again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.errors import StorageError
from workflows.synth import synth


def digests(directory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def test_lists_name_every_clip_once_with_frames_and_label(tmp_path: Path) -> None:
    synth(tmp_path, clips=29, folds=2, workers=1)
    rows = {
        name: [line.split(" ") for line in (tmp_path / "lists" / f"{name}.txt").read_text().splitlines()]
        for name in ("train", "test", "set_1_train", "set_1_test", "set_2_train", "set_2_test")
    }
    videos = {str(p.relative_to(tmp_path / "videos").with_suffix("")) for p in (tmp_path / "videos").rglob("*.mp4")}
    assert len(videos) == 29
    for train, test in (("train", "test"), ("set_1_train", "set_1_test"), ("set_2_train", "set_2_test")):
        named = [row[0] for row in rows[train] + rows[test]]
        assert sorted(named) == sorted(videos)
    assert [row[0] for row in rows["set_1_train"]] == [row[0] for row in rows["set_2_test"]]
    clips = {c["clip_id"]: c for c in json.loads((tmp_path / "manifest.json").read_text())["clips"]}
    for clip_id, frames, label in rows["train"] + rows["test"]:
        assert (int(frames), int(label)) == (clips[clip_id]["num_frames"], clips[clip_id]["label"])
    assert len(rows["test"]) == 7


def test_the_number_of_workers_changes_nothing_and_a_second_run_neither(tmp_path: Path) -> None:
    synth(tmp_path / "one", clips=8, seed=3, workers=1)
    synth(tmp_path / "two", clips=8, seed=3, workers=2)
    first = digests(tmp_path / "one")
    assert digests(tmp_path / "two") == first
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "one" / "videos").rglob("*.mp4")}
    synth(tmp_path / "one", clips=8, seed=3)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    synth(tmp_path / "one", clips=10, seed=3, workers=1)  # growing keeps what is there
    grown = digests(tmp_path / "one" / "videos")
    assert len(grown) == 10
    assert {f"videos/{k}": v for k, v in grown.items()}.items() >= {
        k: v for k, v in first.items() if "mp4" in k
    }.items()


def test_another_archive_in_the_directory_is_refused(tmp_path: Path) -> None:
    synth(tmp_path, clips=1, workers=1)
    with pytest.raises(StorageError, match="another seed and difficulty"):
        synth(tmp_path, clips=1, seed=1, difficulty="hard")


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"test_share": 1.5}, {"folds": 1}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(StorageError, match="synth needs"):
        synth(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_is_finished_by_the_next(tmp_path: Path) -> None:
    program = f"from pathlib import Path; from workflows.synth import synth; synth(Path({str(tmp_path)!r}), clips=150)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    run = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, env=env)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.mp4")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode != 0
    done = len(list((tmp_path / "videos").rglob("[0-9]*.mp4")))
    assert 0 < done < 150
    assert not (tmp_path / "lists").exists()
    synth(tmp_path, clips=done, workers=1)
    assert not list(tmp_path.rglob(".*"))
