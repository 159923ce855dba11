"""The manifests: valid against KubeRay's schemas, hardened, and without a credential."""

import importlib
import inspect
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import ClusterError
from cluster.kubernetes import KINDS, Kind, manifests
from cluster.pods import Deployment
from tests.cluster.structural import problems
from workflows.manifests import render

STATIC = Path(__file__).parents[2] / "cluster" / "manifests"
HERE = Deployment(image="registry.example/pthnet:0.1.0")
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob", "RayService")


def everything(on: Deployment = HERE) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Every object of every kind, those carried inside a config map included."""
    for kind in KINDS:
        for item in manifests(kind, on):
            yield kind, item
            if item["kind"] == "ConfigMap":
                yield kind, json.loads(item["data"]["rayjob.json"])


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec inside an object."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


@pytest.mark.parametrize("kind", KINDS)
def test_the_static_copy_is_what_is_rendered(kind: Kind) -> None:
    text = render(manifests(kind, HERE))
    assert (STATIC / f"{kind}.yaml").read_text() == text, f"run: pthnet manifests {kind} --image {HERE.image}"
    assert list(yaml.safe_load_all(text)) == manifests(kind, HERE)


@pytest.mark.parametrize(
    "on", [HERE, Deployment(image="r/p@sha256:ab", name="x", spot="cloud/spot=true", decode_min=2)]
)
def test_kuberays_schemas_accept_every_field(on: Deployment) -> None:
    checked = {
        item["kind"] for _, item in everything(on) if item["kind"] in RAY_KINDS and not problems(item, item["kind"])
    }
    wrong = [line for _, item in everything(on) if item["kind"] in RAY_KINDS for line in problems(item, item["kind"])]
    assert wrong == []
    assert checked == set(RAY_KINDS)


def test_the_check_sees_what_an_api_server_would_refuse_or_drop() -> None:
    cluster = manifests("raycluster", HERE)[0]
    cluster["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    cluster["spec"]["autoscalerOptions"]["version"] = "v3"
    del cluster["spec"]["workerGroupSpecs"][1]["groupName"]
    found = "\n".join(problems(cluster, "RayCluster"))
    for wrong in ("minReplica", "livenesProbe", "'v3'", "'groupName' is a required property"):
        assert wrong in found


def test_nothing_runs_as_root_or_may_become_it() -> None:
    found = [pod for _, item in everything() for pod in pods(item)]
    assert len(found) >= 10
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_only_the_head_and_the_scheduler_hold_a_token_of_kubernetes() -> None:
    holders = set()
    for _, item in everything():
        for pod in pods(item):
            if pod.get("automountServiceAccountToken", True):
                holders.add(pod["containers"][0]["name"])
    assert holders == {"ray-head", "schedule"}


def test_the_scheduler_may_create_and_read_ray_jobs_and_nothing_else() -> None:
    role = next(item for item in manifests("cronjob", HERE) if item["kind"] == "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_credentials_come_from_a_secret_and_stand_in_no_manifest() -> None:
    for _, item in everything():
        assert item["kind"] != "Secret"
        for pod in pods(item):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    assert not any(word in variable["name"] for word in ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY"))
                if container["name"].startswith("ray-"):
                    assert {"secretRef": {"name": "pthnet-credentials"}} in container["envFrom"]


def test_the_cron_job_never_runs_twice_at_once_and_waits_for_its_run() -> None:
    items = {item["kind"]: item for item in manifests("cronjob", HERE, schedule="5 4 * * 1", timezone="Europe/Berlin")}
    cron = items["CronJob"]
    assert (cron["apiVersion"], set(cron)) == ("batch/v1", {"apiVersion", "kind", "metadata", "spec"})
    spec = cron["spec"]
    # the fields of batch/v1 CronJobSpec and JobSpec that we use, from the Kubernetes API reference
    when = {"schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "suspend"}
    assert set(spec) <= when | {"successfulJobsHistoryLimit", "failedJobsHistoryLimit", "jobTemplate"}
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("5 4 * * 1", "Europe/Berlin", "Forbid")
    job = spec["jobTemplate"]["spec"]
    assert set(job) <= {
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "podFailurePolicy",
        "template",
        "activeDeadlineSeconds",
    }
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert pod["containers"][0]["command"] == ["python", "-m", "cluster.await_ray_job", "/etc/pthnet/rayjob.json"]
    assert pod["volumes"][0]["configMap"]["name"] == items["ConfigMap"]["metadata"]["name"]
    assert pod["serviceAccountName"] == items["ServiceAccount"]["metadata"]["name"]
    # a label of the job's pods is what the run is named after: 11 characters are the job controller's
    assert len(cron["metadata"]["name"]) + 11 <= 47


def test_pools_scale_between_their_bounds_and_the_head_does_no_work() -> None:
    spec = manifests("raycluster", HERE)[0]["spec"]
    decode, extract = spec["workerGroupSpecs"]
    assert (decode["minReplicas"], decode["maxReplicas"], extract["minReplicas"], extract["maxReplicas"]) == (
        0,
        8,
        0,
        4,
    )
    assert "nvidia.com/gpu" not in decode["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert extract["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (spec["autoscalerOptions"]["version"], spec["enableInTreeAutoscaling"]) == ("v2", True)
    for part in (spec["headGroupSpec"], decode, extract):
        assert part["template"]["spec"]["restartPolicy"] == "Never"  # as autoscaler v2 asks


def test_workers_go_to_spot_nodes_and_the_head_does_not() -> None:
    spec = manifests("rayjob", Deployment(image="r/p:1", spot="cloud/spot=true"))[0]["spec"]["rayClusterSpec"]
    for group in spec["workerGroupSpecs"]:
        assert group["template"]["spec"]["nodeSelector"] == {"cloud/spot": "true"}
        assert group["template"]["spec"]["tolerations"][0]["key"] == "cloud/spot"
    assert "nodeSelector" not in spec["headGroupSpec"]["template"]["spec"]


def test_a_drain_spares_the_head_by_a_budget_its_pods_match() -> None:
    for kind in ("raycluster", "rayjob", "raycronjob", "rayservice"):
        ray, budget = manifests(kind, HERE)
        head = next(labels for labels in _pod_labels(ray) if labels["app.kubernetes.io/component"] == "head")
        assert budget["spec"]["minAvailable"] == 1
        assert budget["spec"]["selector"]["matchLabels"].items() <= head.items()


def _pod_labels(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value["metadata"]["labels"]
        for item in value.values():
            yield from _pod_labels(item)
    elif isinstance(value, list):
        for item in value:
            yield from _pod_labels(item)


def test_the_service_runs_an_application_that_exists_and_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    spec = manifests("rayservice", HERE, model="models:/faces@champion")[0]["spec"]
    (application,) = json.loads(spec["serveConfigV2"])["applications"]
    module, name = application["import_path"].split(":")
    build = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(build).parameters) == 1  # as Ray Serve asks
    assert application["args"]["model"] == "models:/faces@champion"
    assert build(application["args"]) is not None
    with pytest.raises(ClusterError, match="take model"):
        build({"modle": "x"})


def test_a_run_leaves_nothing_behind_and_its_command_survives_quoting() -> None:
    command = ["extract", "s3://bucket/two words", "--features", "s3://bucket/it's"]
    spec = manifests("rayjob", HERE, command=command)[0]["spec"]
    assert shlex.split(spec["entrypoint"]) == ["pthnet", *command]
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 3600)


@pytest.mark.parametrize(
    "wrong",
    [{"image": "pthnet"}, {"image": "r:5000/pthnet"}, {"image": "pthnet:latest"}, {"name": "n" * 25}, {"decode_min": 9},
     {"extract_max": -1}, {"spot": "spot"}],
)  # fmt: skip
def test_what_would_not_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ClusterError):
        Deployment(**{"image": "r/p:1", **wrong})
