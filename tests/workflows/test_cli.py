"""What the command line promises: it answers at once, and what a user can put right is one line and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.videos import encode
from workflows.cli import COMMANDS, build, run


@pytest.fixture
def one_video(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    encode(folder / "a.mp4")
    return folder


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "pyarrow", "numpy", "cv2"}
    code = (
        "import sys; from workflows.cli import run; run(['--help']);"
        f"loaded = {heavy!r} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for commands in COMMANDS.values():
        for name, _, _ in commands:
            assert name in done.stdout


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name, _, _ in commands])
def test_every_workflow_explains_itself_and_each_of_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
    waiting = [build()[name]]
    while waiting:
        app = waiting.pop()
        waiting += [app[sub] for sub in app if not sub.startswith("-")]
        if app.default_command is not None:
            options = app.assemble_argument_collection(parse_docstring=True)
            assert not [option.name for option in options if option.show and not option.parameter.help]


def test_angle_brackets_in_a_help_text_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    run(["loso", "--help"])
    assert "<sub>_<file>" in capsys.readouterr().out


def test_an_unknown_command_or_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extrakt"]) == 2
    assert run(["extract", "--no-such-option", "1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def extract_arguments(source: Path, table: Path, *more: str) -> list[str]:
    return ["extract", str(source), "--features", str(table), "--backbone", "tiny", *more]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_no_videos_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    line = said(extract_arguments(tmp_path / "empty", tmp_path / "f", "--random-weights", "0"), capsys)
    assert "empty" in line
    assert not (tmp_path / "f").exists()


def test_weights_must_be_chosen(one_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--weights" in said(extract_arguments(one_video, tmp_path / "f"), capsys)


def test_weights_that_do_not_fit_name_key_and_shapes(
    one_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pthnet import VideoMAE, VideoMAEConfig

    state = VideoMAE.seeded(VideoMAEConfig.named("tiny"), 0).state_dict()
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(5, 192)
    torch.save({"model": state}, tmp_path / "odd.pth")
    line = said(extract_arguments(one_video, tmp_path / "f", "--weights", str(tmp_path / "odd.pth")), capsys)
    assert "blocks.0.mlp" in line
    assert "5" in line
    assert "192" in line
    assert not (tmp_path / "f").exists()


def test_a_list_that_names_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("Happy/0001 20 0\n")
    more = ["--random-weights", "0", "--root", str(tmp_path)]
    arguments = extract_arguments(tmp_path / "list.txt", tmp_path / "f", *more)
    assert "Happy/0001" in said(arguments, capsys)


def train_arguments(tmp_path: Path, *more: str) -> list[str]:
    return ["train", "--features", str(tmp_path / "f"), "--out", str(tmp_path / "runs"), *more]


def test_an_unknown_benchmark_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(train_arguments(tmp_path, "--benchmark", "AFEW", "--lists", str(tmp_path)), capsys)
    assert "DFEW" in line
    assert "FERV39k" in line


def test_a_label_outside_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("Happy/0001 20 0\nSad/0001 20 7\n")
    lists = ["--train-list", str(tmp_path / "train.txt"), "--test-list", str(tmp_path / "test.txt")]
    line = said(train_arguments(tmp_path, *lists, "--classes", "Happy", "--classes", "Sad"), capsys)
    assert "7" in line
