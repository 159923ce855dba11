"""What `pthnet train` refuses before anything starts: one clear line, exit code 2, nothing half-written."""

from dataclasses import replace
from pathlib import Path

import pytest

from storage.runs import write_run
from tests.archives import Archive, write_archive
from workflows.cli import run
from workflows.train import TrainRequest, settings_of
from workflows.train_data import benchmark_of, read_data


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    made = write_archive(folder, clips=24)
    write_archive(
        folder / "other", clips=3, dim=8, seed=1, features=made.features
    )  # a second extractor in the same table
    lists = made.lists
    (lists / "more.txt").write_text((lists / "train.txt").read_text() + "Happy/none1 30 0\nHappy/none2 30 0\n")
    (lists / "bad.txt").write_text("Happy/00000 30 9\n")
    return made


def request_for(archive: Archive, **options: object) -> TrainRequest:
    base = TrainRequest(
        features=archive.features,
        train_list=str(archive.lists / "train.txt"),
        test_list=str(archive.lists / "test.txt"),
        classes=("Happy,Sad,Neutral",),
        extractor=archive.extractor,
    )
    return replace(base, **options)


def test_lists_become_folds_with_facts_that_identify_them(archive: Archive) -> None:
    data = read_data(request_for(archive))
    assert (data.dim, data.benchmark.num_classes, len(data.census.clip_ids)) == (16, 3, 24)
    assert data.facts["extractor"] == archive.extractor
    assert set(data.facts["lists"]) == {"train.txt", "test.txt"}
    assert not data.notes


def test_missing_clips_are_left_out_when_allowed_and_said_so(archive: Archive) -> None:
    data = read_data(request_for(archive, train_list=str(archive.lists / "more.txt"), allow_missing=True))
    assert data.notes == ["left out 2 of 26 listed clips without features: Happy/none1, Happy/none2"]
    assert len(data.census.clip_ids) == 24


def test_overlapping_lists_are_said_so(archive: Archive) -> None:
    (note,) = read_data(request_for(archive, test_list=str(archive.lists / "train.txt"))).notes
    assert "18 clips in both train and test (100.0 % of the test clips" in note


def test_choosing_on_validation_holds_out_a_tenth_by_default(archive: Archive) -> None:
    assert len(read_data(request_for(archive)).census.splits[0].validation) == 0
    assert len(read_data(request_for(archive, mu="validation")).census.splits[0].validation) == 3


def test_a_benchmark_brings_its_published_schedule() -> None:
    request = TrainRequest(features="none", benchmark="DFEW", lists="none")
    settings = settings_of(request, benchmark_of(request), 1408)
    assert (settings.epochs, settings.milestones, settings.decay) == (30, (10, 15, 20, 25), 0.5)
    assert settings.model.num_classes == 7
    shorter = settings_of(replace(request, epochs=15), benchmark_of(request), 1408)
    assert shorter.milestones == (5, 8, 10, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-list", "{lists}/more.txt"], "2 of 26 listed clips have no features"),
        (["--train-list", "{lists}/bad.txt"], "has label 9; expected 0 to 2 (Happy, Sad, Neutral)"),
        (["--train-list", "{lists}/gone.txt"], "no such list"),
        (["--extractor", "nobody-0"], "holds no features of extractor nobody-0; it has synthetic-64-fp32-"),
        (["--backbone-dim", "1408"], "has 16 numbers a window, --backbone-dim says 1408"),
        (["--features", "{lists}/nowhere"], "holds no features"),
        (["--selection", "validation", "--validation", "0"], "need held-out clips"),
        (["--patience", "3"], "patience needs a score to watch"),
        (["--dim", "20"], "dim must be a multiple of 16"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_exit_code_2(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    asked = {
        "--features": archive.features,
        "--train-list": f"{archive.lists}/train.txt",
        "--test-list": f"{archive.lists}/test.txt",
        "--classes": "Happy,Sad,Neutral",
        "--out": str(tmp_path / "runs"),
    }
    if "nowhere" not in "".join(options):
        asked["--extractor"] = archive.extractor
    options = [option.format(lists=archive.lists) for option in options]
    asked |= dict(zip(options[::2], options[1::2], strict=True))
    code = run(["train", *(part for pair in asked.items() for part in pair)])
    errors = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in errors[-1]
    assert len(errors) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the clips: --benchmark NAME --lists FOLDER"),
        (["--benchmark", "AffectNet", "--lists", "x"], "no benchmark is named 'AffectNet'; known: FERV39k"),
        (["--benchmark", "DFEW"], "DFEW needs its list files"),
        (["--train-list", "a", "--test-list", "b"], "--classes Happy,Sad,Neutral"),
        (["--benchmark", "DFEW", "--lists", "x", "--fold", "9"], "DFEW has folds 1 to 5; found 9"),
    ],
)
def test_an_incomplete_question_is_answered_with_what_to_add(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["train", "--features", "none", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_model_remembers_where_the_weights_of_its_features_were_read(archive: Archive) -> None:
    assert read_data(request_for(archive)).weights == ""
    for day, weights in enumerate(("/old/vit.pth", "s3://bucket/vit.pth"), 1):
        write_run(archive.features, f"2026010{day}T000000-a", {"extractor": archive.extractor, "weights": weights})
    write_run(archive.features, "20260103T000000-a", {"extractor": archive.extractor, "weights": None})
    write_run(archive.features, "20260104T000000-a", {"extractor": "another", "weights": "/another.pth"})
    assert read_data(request_for(archive)).weights == "s3://bucket/vit.pth"
