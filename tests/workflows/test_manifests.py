"""`pthnet manifests` prints what kubectl can apply."""

from pathlib import Path

import pytest
import yaml
from cyclopts import App

from cluster.errors import ClusterError
from workflows.manifests import manifests


def test_the_command_line_reaches_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    app = App()
    app.command(manifests)
    arguments = "--image r/p:1 --namespace lab --cron @daily --decode-nodes 1 5 -- extract s3://b/v --max-gpus 2"
    app(["manifests", "cronjob", *arguments.split()], result_action="return_value")
    items = {item["kind"]: item for item in yaml.safe_load_all(capsys.readouterr().out)}
    assert items["CronJob"]["metadata"] == items["CronJob"]["metadata"] | {"name": "pthnet-extract", "namespace": "lab"}
    run = yaml.safe_load(items["ConfigMap"]["data"]["rayjob.json"])
    assert run["spec"]["entrypoint"] == "pthnet extract s3://b/v --max-gpus 2"
    decode = run["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (decode["minReplicas"], decode["maxReplicas"]) == (1, 5)


def test_a_wrong_schedule_is_refused_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClusterError, match="hour takes 0-23"):
        manifests("cronjob", image="r/p:1", cron="0 24 * * *")
    assert capsys.readouterr().out == ""


def test_a_file_is_written_where_asked(tmp_path: Path) -> None:
    manifests("raycluster", image="r/p:1", output=tmp_path / "cluster.yaml")
    assert [item["kind"] for item in yaml.safe_load_all((tmp_path / "cluster.yaml").read_text())] == [
        "RayCluster",
        "PodDisruptionBudget",
    ]
