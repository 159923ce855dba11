"""The demo is the whole system at small scale."""

import json
from pathlib import Path

import pytest

from tasks.face import CLASSES
from workflows.demo import demo


def facts_of(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert demo(directory, clips=28, epochs=2, json=True) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_demo_registers_a_model_that_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = facts_of(tmp_path / "demo", capsys)
    assert set(first["scores"]) == {"forward", "reverse", "fused"}
    assert all(0 <= score <= 1 for found in first["scores"].values() for score in found.values())
    assert first["model"] == "models:/pthnet-demo/1"
    assert first["windows"] > 28
    assert first["predicted"]["label"] in CLASSES
