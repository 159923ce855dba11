"""Published feature trees in and out on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.features import FeatureTable
from tests.storage.test_npy import tree
from workflows import cli
from workflows.import_features import published_extractor

CLIPS = {"Crime/Angry/0063": 28, "b c": 31, "ü": 47, "short": 10}


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    capsys.readouterr()
    assert cli.run([*(str(argument) for argument in arguments), "--json"]) == code
    out = capsys.readouterr().out
    return json.loads(out) if out else {}


@pytest.mark.parametrize("face", [False, True])
def test_a_published_tree_goes_in_once_and_comes_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], face: bool
) -> None:
    for direction in ("forward", "reverse"):
        tree(tmp_path / "in", CLIPS, direction=direction, face=face, same=False)
    faces = ["--face"] if face else []
    command = ["import-features", tmp_path / "in", "--dataset", "D", "--features", tmp_path / "t", *faces]
    report = run(capsys, *command)
    assert (report["done"], report["failed"], report["planned"]["new"]) == (4, {}, 4)
    assert report["extractor"] == published_extractor(6, face=face).id
    version = FeatureTable(str(tmp_path / "t")).version()
    again = run(capsys, *command)
    assert (again["done"], again["planned"]["known"], again["version"]) == (0, 4, version)

    out = run(capsys, "export-features", tmp_path / "t", "--dataset", "D", "--out", tmp_path / "out", *faces)
    assert (out["clips"], out["files"]) == (4, 24)
    before = {path.relative_to(tmp_path / "in"): np.load(path) for path in (tmp_path / "in").rglob("*.npy")}
    after = {path.relative_to(tmp_path / "out"): np.load(path) for path in (tmp_path / "out").rglob("*.npy")}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_counts_are_checked_against_the_lists_and_what_fails_is_in_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "in", CLIPS)
    (tmp_path / "list.txt").write_text("Crime/Angry/0063 99 0\nb c 31 1\n")
    command = ["import-features", tmp_path / "in", "--dataset", "D", "--features", tmp_path / "t"]
    report = run(capsys, *command, "--lists", tmp_path / "list.txt")
    assert (report["done"], report["failed"]) == (3, {"count_mismatch": 1})
    facts = run(capsys, "status", tmp_path / "t")
    (held,) = facts["extractors"].values()
    assert held["quarantined"]["count_mismatch"]["examples"][0]["clip_id"] == "Crime/Angry/0063"
    assert held["quarantined"]["count_mismatch"]["remedy"]
    assert run(capsys, *command, "--retry-quarantined")["done"] == 1
    assert run(capsys, *command)["planned"]["known"] == 4


def test_most_clips_failing_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "in", {"a": 28, "b": 28})
    for path in (tmp_path / "in").rglob("*.npy"):
        path.write_text("no numbers")
    command = ["import-features", tmp_path / "in", "--dataset", "D", "--features", tmp_path / "t"]
    assert run(capsys, *command, code=1)["failed"] == {"unreadable": 2}
    assert run(capsys, *command)["planned"]["quarantined"] == 2


def test_whole_frames_and_faces_are_two_extractors_and_an_export_wants_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for face in (False, True):
        tree(tmp_path / "in", {"a": 28}, face=face)
        faces = ["--face"] if face else []
        run(capsys, "import-features", tmp_path / "in", "--dataset", "D", "--features", tmp_path / "t", *faces)
    command = ["export-features", tmp_path / "t", "--dataset", "D", "--out", tmp_path / "out"]
    assert cli.run([*map(str, command)]) == 2
    assert "name one of them with --extractor" in capsys.readouterr().err
    out = run(capsys, *command, "--extractor", published_extractor(6, face=True).id, "--face")
    assert (out["clips"], out["files"]) == (1, 3)


@pytest.mark.parametrize(
    "command",
    [
        ["import-features", "no", "--dataset", "D", "--features", "t"],
        ["export-features", "no", "--dataset", "D", "--out", "o"],
    ],
)
def test_nothing_to_read_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert "no holds no features" in said or "no/D holds no features" in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
