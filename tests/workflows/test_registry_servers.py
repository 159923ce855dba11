"""The registry on real servers: published weights in, a prediction out, over HTTP, SQLite, PostgreSQL and S3."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthnet.published import export_pthnet
from tasks.bundle import Bundle
from tasks.model_source import digest_of, load_model
from tests import mlflow_servers, servers, videos
from tests.browser import CHROMIUM, Visit, browser
from tests.predicted import CLASSES, small_bundle
from workflows import cli

NAME = "published faces"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Two published checkpoints, and the model they are."""
    folder = tmp_path_factory.mktemp("published")
    bundle = small_bundle(tiny=True)
    for direction, network in bundle.networks.items():
        export_pthnet(network, folder / f"{direction}.pth")
    return folder, bundle


def bring_in(folder: Path, uri: str, *more: str) -> int:
    files = [str(folder / f"{direction}.pth") for direction in ("forward", "reverse")]
    backbone = ["--backbone", "tiny", "--random-weights", "0", "--precision", "fp32"]
    return cli.run(
        [
            "import-model",
            *files,
            "--name",
            NAME,
            "--classes",
            ",".join(CLASSES),
            "--tracking-uri",
            uri,
            *backbone,
            *more,
        ]
    )


def ask(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=100) as answer:
        return json.load(answer)


def look_at_the_run(uri: str) -> None:
    """MLflow's own page of the run shows its metrics, its figures and the version that came of it."""
    from pthnet.metrics import METRICS
    from tasks.figures import confusion_matrix
    from tasks.tracking import Tracker

    tracker = Tracker(uri, "pthnet")
    (run,) = tracker.client.search_runs([tracker.experiment_id], "params.mu = '0.7'")
    tracker.metrics(run.info.run_id, {f"fused_{metric}": 0.5 for metric in METRICS})
    tracker.figures(run.info.run_id, {"confusion": confusion_matrix(np.arange(3), np.arange(3), CLASSES)})
    with browser() as opened:
        visit = Visit(opened)
        here = f"{uri}/#/experiments/{tracker.experiment_id}/runs/{run.info.run_id}"
        visit.page.goto(here)
        visit.page.wait_for_selector("text=fused_uar", timeout=60_000)
        visit.page.wait_for_selector(f"text={NAME}")
        visit.page.goto(f"{here}/artifacts/figures/confusion.png")
        visit.page.wait_for_function(
            "() => [...document.images].some(image => image.naturalWidth > 400)", timeout=60_000
        )
        assert all(url.startswith((uri, "data:", "blob:")) for url in visit.fetched)


def test_published_weights_come_in_and_are_promoted_compared_and_rolled_back_on_a_server(
    published: tuple[Path, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = published
    with mlflow_servers.tracking_server(tmp_path) as uri:
        assert bring_in(folder, uri) == 0
        assert bring_in(folder, uri, "--mu", "0.5") == 0
        assert digest_of(load_model(f"models:/{NAME}@champion", uri)) == digest_of(bundle)
        assert load_model(f"models:/{NAME}@candidate", uri).facts["version"] == "2"
        if CHROMIUM:
            look_at_the_run(uri)
        assert list((tmp_path / "artifacts").rglob("forward.safetensors")), "the server keeps them, not the client"
        assert not list((tmp_path / "artifacts").rglob("*.pkl"))
        place = ["--tracking-uri", uri]
        capsys.readouterr()
        assert cli.run(["models", "promote", NAME, *place]) == 1
        assert "never scored" in capsys.readouterr().out
        assert cli.run(["models", "promote", NAME, "2", "--force", *place]) == 2
        assert cli.run(["models", "promote", NAME, "2", "--force", "--reason", "a test", *place]) == 0
        assert cli.run(["models", "list", "--json", *place]) == 0
        listed = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (listed[0]["name"], listed[0]["champion"], listed[0]["candidate"]) == (NAME, "2", "2")
        assert cli.run(["models", "compare", NAME, "1", "2", "--json", *place]) == 0
        assert json.loads(capsys.readouterr().out)["differing"]["param mu"] == ["0.7", "0.5"]
        assert cli.run(["models", "rollback", NAME, "--reason", "worse", *place]) == 0
        assert cli.run(["models", "show", NAME, "champion", "--json", *place]) == 0
        shown = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (shown["version"], shown["decision"]) == ("1", "champion: rolled back from version 2: worse")
        assert cli.run(["models", "show", NAME, "9", *place]) == 2
        assert cli.run(["models", "show", "nobody", *place]) == 2


def test_a_registered_model_answers_mlflows_server_by_features_and_by_video(
    published: tuple[Path, Bundle], tmp_path: Path
) -> None:
    folder, bundle = published
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert bring_in(folder, uri) == 0
    video = videos.encode(tmp_path / "a clip.mp4", frames=40)
    from tasks.direct import direct_extractor

    extractor = direct_extractor(bundle)
    features = {name: matrix.astype(float).tolist() for name, matrix in extractor.features(str(video)).items()}
    extractor.close()
    with mlflow_servers.scoring_server(f"models:/{NAME}/1", uri, tmp_path) as address:
        by_features = ask(address, {"dataframe_records": [features]})["predictions"][0]
        by_video = ask(address, {"dataframe_records": [{"video": str(video)}]})["predictions"][0]
        assert by_video["expression"] in CLASSES
        np.testing.assert_allclose(by_video["probabilities"], by_features["probabilities"], atol=1e-5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, {"dataframe_records": [{"video": str(tmp_path / "gone.mp4")}]})
        assert 400 <= refused.value.code < 500


if mlflow_servers.POSTGRES:

    def test_postgresql_and_s3_keep_a_registry_as_well(
        published: tuple[Path, Bundle], tmp_path: Path, moto: servers.S3Server
    ) -> None:
        folder, bundle = published
        bucket = moto.bucket()
        environment = {**moto.environment(), "MLFLOW_S3_ENDPOINT_URL": moto.endpoint}
        with (
            mlflow_servers.postgres(tmp_path) as store,
            mlflow_servers.tracking_server(
                tmp_path, store=store, artifacts=f"s3://{bucket}/models", environment=environment
            ) as uri,
        ):
            assert bring_in(folder, uri) == 0
            assert digest_of(load_model(f"models:/{NAME}@champion", uri)) == digest_of(bundle)
        kept = [entry["Key"] for entry in moto.client().list_objects_v2(Bucket=bucket, Prefix="models/")["Contents"]]
        assert any(key.endswith("forward.safetensors") for key in kept)
