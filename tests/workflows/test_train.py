"""`pthnet train` as a user meets it: folds, a table, the registry, and crashes that change nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import files
from tests import servers
from tests.archives import CLASSES, Archive, write_archive
from workflows.cli import run
from workflows.train import TrainRequest, TrainResult

pytestmark = pytest.mark.timeout(600)  # every start of a Ray Train worker group is slow on a busy machine
EPOCHS = 6
YAML = (
    "name: lab\nclasses: [Happy, Sad, Neutral]\nfolds: 2\nschedule: {epochs: 6, milestones: [4], learning_rate: 0.02}\n"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    made = write_archive(folder, folds=2)
    (folder / "lists" / "lab.yaml").write_text(YAML)
    return made


@pytest.fixture(scope="module")
def bucket(moto_server: servers.S3Server) -> Iterator[str]:
    """A bucket, and the environment that leads to it, before Ray's workers inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in moto_server.environment().items():
            patch.setenv(variable, value)
        yield moto_server.bucket()


@pytest.fixture(scope="module")
def ray_cluster(bucket: str) -> Iterator[str]:
    import ray

    from cluster.connect import connect

    connect(num_cpus=2)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def request_for(archive: Archive, out: Path, **options: Any) -> TrainRequest:
    return replace(
        TrainRequest(
            features=archive.features,
            benchmark=str(archive.lists / "lab.yaml"),
            lists=str(archive.lists),
            dim=32,
            mlp_dim=32,
            workers=2,
            out=str(out),
            run_name="study",
        ),
        **options,
    )


def trained(request: TrainRequest) -> TrainResult:
    from rich.console import Console

    from workflows.train import run_training

    return run_training(request, Console(stderr=True))


@pytest.fixture(scope="module")
def study(archive: Archive, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return trained(request_for(archive, tmp_path_factory.mktemp("out"), fold=(1,), validation=0.2))


def test_both_directions_are_trained_fused_and_scored(study: TrainResult) -> None:
    systems = study.summary["systems"]
    assert list(systems) == ["forward", "reverse", "fused", "fused, mu from validation"]
    assert study.score("fused") > 0.6
    low, high = systems["fused"]["interval"]["uar"]
    assert low <= study.score("fused") <= high
    assert study.summary["majority"]["pooled"]["uar"] == pytest.approx(1 / 3)
    assert study.summary["folds"]["1"]["epochs"] == {"forward": EPOCHS, "reverse": EPOCHS}


def test_the_run_leaves_results_predictions_and_figures(study: TrainResult) -> None:
    folder = Path(study.folder)
    assert json.loads((folder / "results.json").read_text())["summary"] == study.summary
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 24
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {"learning_curves", "confusion", "recall", "reliability", "embedding"}


def test_mlflow_holds_nested_runs_with_the_data_they_saw(study: TrainResult, archive: Archive) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(study.tracking_uri)
    parent = client.get_run(study.mlflow_run)
    assert parent.data.tags["pthnet.extractor"] == archive.extractor
    assert parent.data.params["table_version"] == str(study.table_version)
    assert parent.data.metrics["fused_uar"] == pytest.approx(study.score("fused"))
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{study.mlflow_run}'")
    names = sorted(child.data.tags["mlflow.runName"] for child in children)
    assert names == ["fold-1-forward", "fold-1-reverse"]
    assert len(client.get_metric_history(children[0].info.run_id, "loss")) == EPOCHS
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}


def test_the_registered_model_answers_without_a_pickle(study: TrainResult) -> None:
    import mlflow

    from tasks.bundle import load_bundle
    from tasks.registered import input_example

    (made,) = study.registered
    assert made["champion"]
    mlflow.set_tracking_uri(study.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{made['name']}@champion")
    answer = model.predict(input_example(load_bundle(study.models["1"])))
    assert answer["expression"][0] in CLASSES
    assert sum(answer["probabilities"][0]) == pytest.approx(1)
    stored = Path(mlflow.artifacts.download_artifacts(made["uri"]))
    assert not [path for path in stored.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]


def test_evaluate_reaches_the_score_training_printed(
    study: TrainResult, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--features", archive.features, "--list", str(archive.lists / "set_1_test.txt"), "--json"]
    assert run([*arguments, "--model", study.registered[0]["uri"], "--tracking-uri", study.tracking_uri]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = study.summary["systems"]["fused"]["folds"]["1"]
    assert found["systems"]["fused"]["pooled"] == pytest.approx(expected)


def test_evaluate_refuses_a_table_of_another_extractor(
    study: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_archive(tmp_path, clips=12, dim=8)
    code = run(
        [
            "evaluate",
            "--features",
            other.features,
            "--list",
            str(other.lists / "test.txt"),
            "--model",
            study.models["1"],
        ]
    )
    assert code == 2
    assert f"holds {other.extractor}" in capsys.readouterr().err


def test_a_finished_run_is_read_back_and_registers_nothing_twice(study: TrainResult, archive: Archive) -> None:
    again = trained(request_for(archive, Path(study.folder).parent, fold=(1,), validation=0.2, figures=False))
    assert again.summary == study.summary
    assert again.mlflow_run == study.mlflow_run
    assert again.registered == study.registered
    assert study.registered[0]["reason"] == "champion: the first version"


def test_a_run_name_is_not_shared_by_two_studies(study: TrainResult, archive: Archive) -> None:
    from pthnet.errors import ModelError

    with pytest.raises(ModelError, match="is a run with other lr; keep them to resume it, or give another --run-name"):
        trained(request_for(archive, Path(study.folder).parent, fold=(1,), validation=0.2, lr=0.5))


def _wait_for_epoch(progress: str, epoch: int, process: subprocess.Popen[bytes]) -> None:
    while not files.size_of(progress) or json.loads(files.read_bytes(progress))["epoch"] < epoch:
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)


def test_killing_a_worker_and_the_driver_changes_no_bit_of_the_weights(
    study: TrainResult, archive: Archive, ray_cluster: str, bucket: str, tmp_path: Path
) -> None:
    import psutil
    from safetensors.numpy import load, load_file

    command = ["train", "--features", archive.features, "--benchmark", str(archive.lists / "lab.yaml")]
    command += [
        "--lists",
        str(archive.lists),
        "--fold",
        "1",
        "--directions",
        "forward",
        "--dim",
        "32",
        "--mlp-dim",
        "32",
    ]
    command += ["--workers", "2", "--out", f"s3://{bucket}/runs", "--run-name", "study", "--validation", "0.2"]
    command += ["--no-figures", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster, "PYTHONPATH": str(Path(__file__).parents[2])}
    run_folder = f"s3://{bucket}/runs/study"
    progress = f"{run_folder}/fold-1-forward/progress.json"
    driver = subprocess.Popen([sys.executable, "-m", "workflows.cli", *command], env=environment)
    try:
        _wait_for_epoch(progress, 1, driver)
        titles = {process.pid: " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)}
        os.kill(next(pid for pid, title in titles.items() if "RayTrainWorker" in title), signal.SIGKILL)
        _wait_for_epoch(progress, 3, driver)
    finally:
        driver.kill()
        driver.wait()
    assert files.size_of(f"{run_folder}/fold-1-forward/done.json") is None

    assert run([*command, "--register", "none", "--json"]) == 0
    ours = load(files.read_bytes(f"{run_folder}/model-fold-1/forward.safetensors"))
    theirs = load_file(Path(study.models["1"]) / "forward.safetensors")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
