"""`pthnet loso` as a user meets it: every subject left out once, one report, and a kill that costs nothing finished."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ClusterError
from tasks.loso_data import Fold
from tests.archives import write_archive
from tests.pipeline import local_ray
from workflows.cli import run
from workflows.loso_fanout import group_folds, plan_fanout


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("micro")
    assert run(["synth-micro", str(directory), "--subjects", "2"]) == 0
    return directory


def arguments(micro: Path, out: Path, *more: str) -> list[str]:
    source = ["--flow", str(micro / "flow"), "--csv", str(micro / "combined.csv")]
    return ["loso", *source, "--dim", "6", "--out", str(out), *more]


@pytest.fixture(scope="module")
def trained(ray_cluster: str, micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert run(arguments(micro, out, "--epochs", "30", "--lr", "1e-3", "--keep-weights")) == 0
    return out


def test_every_subject_is_left_out_and_the_motion_is_learnt(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["subjects"] == 6
    assert list(results["scores"]) == ["full", "CASME II", "SMIC", "SAMM"]
    assert sum(part["samples"] for part in results["scores"].values()) == 2 * results["scores"]["full"]["samples"]
    assert results["scores"]["full"]["uf1"] > 0.6
    assert results["scores"]["SMIC"]["published"] == {"uf1": 0.8049, "uar": 0.7905}
    assert len(list((trained / "models").glob("*.safetensors"))) == 6
    assert (trained / "confusion.png").exists()
    assert (trained / "subjects.csv").read_text().count("\n") == 7


def test_mlflow_holds_one_run_with_a_nested_run_for_every_subject(trained: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    experiment = client.get_experiment_by_name("loso")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert len(parents) == 1
    assert len(runs) == 7
    assert parents[0].data.metrics["uf1_full"] > 0.6
    child = next(found for found in runs if "mlflow.parentRunId" in found.data.tags)
    assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    losses = client.get_metric_history(child.info.run_id, "loss")
    assert losses[-1].step == 30


def test_the_same_command_again_trains_nothing_and_another_setting_is_refused(
    trained: Path, micro: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "folds").iterdir()}
    assert run(arguments(micro, trained, "--epochs", "30", "--lr", "1e-3", "--no-track", "--json")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["subjects"] == 6
    assert json.loads(said.out)["settings"]["tf32"] is False
    assert {path: path.stat().st_mtime_ns for path in (trained / "folds").iterdir()} == before
    assert run(arguments(micro, trained, "--epochs", "31", "--tf32")) == 2
    assert "another epochs, learning_rate, tf32; choose another --out" in capsys.readouterr().err


def test_best_on_test_is_only_when_asked_and_named_so(
    ray_cluster: str, micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "3", "--selection", "best-on-test", "--no-track", "--folds-at-once", "6"]
    assert run(arguments(micro, tmp_path, *more)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "BEST ON TEST: each subject's epoch was chosen on that subject's own test samples" in text
    assert "best epoch of each subject chosen on that subject's own test samples" in text


def test_a_killed_run_goes_on_where_it_stopped(ray_cluster: str, micro: Path, tmp_path: Path) -> None:
    command = arguments(micro, tmp_path, "--epochs", "6", "--folds-at-once", "1", "--no-track")
    driver = subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", *command, "--address", ray_cluster],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
    )
    folds = tmp_path / "folds"
    deadline = time.monotonic() + 120
    while not (folds.exists() and list(folds.glob("*.json"))) and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {path: path.stat().st_mtime_ns for path in folds.glob("*.json")}
    assert done
    assert run(command) == 0
    assert len(list(folds.glob("*.json"))) == 6
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    whole = tmp_path / "whole"
    assert run([*arguments(micro, whole, "--epochs", "6", "--folds-at-once", "1", "--no-track")]) == 0
    kept, fresh = (json.loads((out / "results.json").read_text())["scores"] for out in (tmp_path, whole))
    assert kept == fresh


def test_flow_computed_over_the_cluster_is_what_one_process_computes(
    ray_cluster: str, micro: Path, tmp_path: Path
) -> None:
    made = tmp_path / "flow"
    assert run(["flow", str(micro / "combined.csv"), str(micro / "frames"), str(made), "--method", "farneback"]) == 0
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in (micro / "flow").iterdir()
    }


def test_pth_net_leaves_subjects_out_on_features(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"sub{person:02d}/EP{clip:02d}_01f" for person in (1, 2, 3) for clip in range(1, 9)]
    archive = write_archive(tmp_path, names=names)
    listed = tmp_path / "casme2.csv"
    listed.write_text("clip_id,label\n" + "".join(f"{name},{row % 3}\n" for row, name in enumerate(names)))
    base = ["loso", "--model", "pthnet", "--features", archive.features, "--dim", "16", "--epochs", "8", "--lr", "0.05"]
    out = tmp_path / "out"
    assert run([*base, "--annotations", str(listed), "--out", str(out), "--no-track", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["subject"] for row in results["by_subject"]] == ["sub01", "sub02", "sub03"]
    assert results["classes"] == ["Happiness", "Surprise", "Repression", "Others", "Disgust"]
    assert results["scores"]["full"]["samples"] == 24
    assert results["scores"]["full"]["war"] > 0.6
    assert results["scores"]["full"]["published"] is None
    lists = tmp_path / "leaking"
    lists.mkdir()
    for part in ("train", "test"):  # a fold whose subject is on both sides
        (lists / f"set_1_{part}.txt").write_text("".join(f"{name} 16 {r % 3}\n" for r, name in enumerate(names)))
    assert run([*base, "--lists", str(lists), "--out", str(tmp_path / "leak")]) == 2
    assert "test subjects leak into training" in capsys.readouterr().err


def test_what_is_missing_is_said_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["loso", "--out", str(tmp_path)]) == 2
    assert "--flow" in capsys.readouterr().err
    assert run(["loso", "--model", "pthnet", "--features", "f", "--out", str(tmp_path)]) == 2
    assert "--annotations or --lists" in capsys.readouterr().err


def test_folds_are_grouped_so_that_no_slot_of_the_cluster_is_idle() -> None:
    folds = [Fold(n, str(n), np.zeros(0, np.int64), np.zeros(0, np.int64)) for n in range(68)]
    plan = plan_fanout(68, {"CPU": 2.0}, at_once=None, cpus=1, gpus=None, fits=lambda gpus: 2)
    assert (plan.at_once, plan.gpus) == (2, 0.0)
    plan = plan_fanout(68, {"CPU": 64.0, "GPU": 4.0}, at_once=None, cpus=1, gpus=0.5, fits=lambda gpus: int(60 * gpus))
    assert plan.at_once == 9, "eight half GPUs share 68 folds"
    assert sorted(len(group) for group in group_folds(folds, plan.at_once)) == [8] * 4 + [9] * 4
    plan = plan_fanout(68, {"CPU": 2.0, "GPU": 1.0}, at_once=None, cpus=1, gpus=0.25, fits=lambda gpus: int(160 * gpus))
    assert plan.at_once == 34, "of four quarters of a GPU two have a core"
    for gpus, expected in (({"GPU": 2.0}, 0.25), ({}, 0.0)):
        plan = plan_fanout(68, {"CPU": 64.0, **gpus}, at_once=None, cpus=1, gpus=None, share=0.25, fits=lambda gpus: 1)
        assert plan.gpus == expected
    assert [fold.number for group in group_folds(folds, 5) for fold in group] == list(range(68))
    with pytest.raises(ClusterError, match="lower --cpus-per-task"):
        plan_fanout(68, {"CPU": 2.0}, at_once=None, cpus=4, gpus=None, fits=lambda gpus: 1)
