"""`pthnet refresh`: from an archive to a model, and nothing at all when nothing changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import local_ray
from tests.videos import encode
from workflows import cli
from workflows.refresh import _fingerprint, _lists
from workflows.train import TrainRequest

pytestmark = pytest.mark.xdist_group("refresh")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small videos of two classes, with their lists."""
    folder = tmp_path_factory.mktemp("archive")
    for name, numbers in {"train": range(8), "test": range(8, 12)}.items():
        lines = []
        for number in numbers:
            encode(folder / "videos" / f"{number}.mp4", frames=20 + number)
            lines.append(f"{number} {20 + number} {number % 2}\n")
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def refresh(archive: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    lists = ["--train-list", f"{archive}/train.txt", "--test-list", f"{archive}/test.txt", "--classes", "Calm,Glad"]
    size = ["--backbone", "tiny", "--random-weights", "0", "--dim", "32", "--mlp-dim", "32", "--epochs", "1"]
    size += ["--extract-precision", "fp32"]
    where = [
        "--features",
        f"{archive}/features",
        "--out",
        f"{archive}/runs",
        "--workers",
        "1",
        "--no-figures",
        "--json",
    ]
    code = cli.run(["refresh", f"{archive}/videos", *lists, *size, *where, *more])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_it_extracts_trains_and_registers_and_the_second_time_finds_nothing_to_do(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, first = refresh(archive, capsys)
    assert code == 0
    assert (first["extraction"]["done"], first["trained"]) == (12, True)
    assert "-fp32-" in first["extraction"]["extractor"]
    registered = first["training"]["registered"]
    assert [(model["version"], model["champion"]) for model in registered] == [("1", True)]
    assert registered[0]["reason"] in first["why"]

    code, second = refresh(archive, capsys)
    assert (code, second["trained"], second["extraction"]["done"]) == (0, False, 0)
    assert f"{registered[0]['name']} 1" in second["why"]


def test_too_many_broken_clips_stop_it_before_training(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (archive / "videos" / f"broken-{number}.mp4").write_bytes(b"no video")
    code, summary = refresh(archive, capsys)
    assert (code, summary["trained"]) == (1, False)
    assert "100% of the clips tried failed" in summary["why"]


def test_a_missing_list_is_found_before_anything_is_extracted(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refresh(archive, capsys, "--test-list", "/nowhere.txt")[0] == 2


def test_new_features_lists_or_settings_ask_for_a_training_and_a_new_address_does_not(tmp_path: Path) -> None:
    def state(version: int = 3, text: str = "a 20 0\n", **changed: Any) -> str:
        (tmp_path / "train.txt").write_text(text)
        request = TrainRequest(features="f", train_list=str(tmp_path / "train.txt"), **changed)
        return _fingerprint(request, version, _lists(request))

    assert state() == state(address="ray://elsewhere:1", out="s3://runs")
    assert len({state(), state(version=4), state(text="a 20 1\n"), state(epochs=9)}) == 4
