"""Kubernetes manifests for KubeRay 1.6: a standing cluster, single runs, scheduled runs, serving.

Every function returns the objects of one file, in the order to apply them. Static copies stand under
cluster/manifests/.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any, Literal, get_args

from cluster.pods import Deployment, labels, ray_cluster_spec, single_pod

Kind = Literal["base", "raycluster", "rayjob", "cronjob", "raycronjob", "rayservice"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EXTRACT = ("extract", "s3://BUCKET/videos", "--features", "s3://BUCKET/features")
TRAIN = ("train", "s3://BUCKET/features", "s3://BUCKET/lists/train.csv")
NIGHTLY = "0 3 * * *"
CHAMPION = "models:/pthnet@champion"
HOUR = 3600


def manifests(
    kind: Kind,
    on: Deployment,
    *,
    command: Sequence[str] = EXTRACT,
    schedule: str = NIGHTLY,
    timezone: str = "Etc/UTC",
    model: str = CHAMPION,
) -> list[dict[str, Any]]:
    """The objects of one kind of manifest.

    Parameters
    ----------
    kind
        base: namespace, accounts and network policy that the others rest on; raycluster: a standing cluster for
        `pthnet submit`; rayjob: one run on its own cluster; cronjob: scheduled runs, never two at once; raycronjob: the
        same by KubeRay alone (feature gate; ticks may overlap); rayservice: the registered model, served.
    command
        The workflow and its arguments, for those that run one.
    schedule, timezone
        Crontab expression and IANA zone, for those that recur.
    model
        What a rayservice serves.
    """
    if kind == "base":
        return base(on)
    if kind == "raycluster":
        return [_object("ray.io/v1", "RayCluster", on, on.name, ray_cluster_spec(on)), _disruption_budget(on)]
    if kind == "rayjob":
        return [
            _object("ray.io/v1", "RayJob", on, f"{on.name}-{command[0]}", ray_job_spec(on, command)),
            _disruption_budget(on),
        ]
    if kind == "cronjob":
        return cron_job(on, command, schedule, timezone)
    if kind == "raycronjob":
        spec = {"schedule": schedule, "timeZone": timezone, "jobTemplate": ray_job_spec(on, command)}
        return [_object("ray.io/v1", "RayCronJob", on, f"{on.name}-{command[0]}", spec), _disruption_budget(on)]
    return [
        _object("ray.io/v1", "RayService", on, f"{on.name}-serve", ray_service_spec(on, model)),
        _disruption_budget(on),
    ]


def base(on: Deployment) -> list[dict[str, Any]]:
    """What the others rest on. Ray runs whatever it is sent, so only pods of this project and KubeRay may reach it."""
    pods = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "pthnet"}}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": on.operator_namespace}}}
    policy = {**pods, "policyTypes": ["Ingress"], "ingress": [{"from": [pods, operator]}]}
    namespace = _object("v1", "Namespace", on, on.namespace, None)
    namespace["metadata"].pop("namespace")
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    return [namespace, _object("networking.k8s.io/v1", "NetworkPolicy", on, f"{on.name}-only", policy)]


def ray_job_spec(on: Deployment, command: Sequence[str]) -> dict[str, Any]:
    """RayJobSpec: a cluster of its own, the run, up to two more tries on a fresh one, everything gone an hour later."""
    return {
        "entrypoint": f"pthnet {shlex.join(command)}",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": HOUR,
        "activeDeadlineSeconds": 48 * HOUR,
        # a lost head loses the run; the next try does what is missing
        "backoffLimit": 2,
        "submitterPodTemplate": single_pod(on, "submitter"),
        "rayClusterSpec": ray_cluster_spec(on),
    }


def cron_job(on: Deployment, command: Sequence[str], schedule: str, timezone: str) -> list[dict[str, Any]]:
    """A CronJob whose pod creates the RayJob and waits for its end, so that Forbid covers the whole run.

    The pod runs this project's image and the few lines of `cluster.await_ray_job` rather than kubectl, because
    `kubectl wait`
    waits for one outcome only and would sit through a failure, and because a second image is a second thing to trust.
    Its account may create and read RayJobs and nothing else. The RayJob is named after the Job, so a pod that is
    replaced finds it.
    """
    name, account = f"{on.name}-{command[0]}", f"{on.name}-schedule"
    run = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"labels": labels(on, "run")},
        "spec": ray_job_spec(on, command),
    }
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    role = _object("rbac.authorization.k8s.io/v1", "Role", on, account, None) | {"rules": rules}
    binding = _object("rbac.authorization.k8s.io/v1", "RoleBinding", on, account, None) | {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": on.namespace}],
    }
    job_name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    pod = single_pod(
        on,
        "schedule",
        ["python", "-m", "cluster.await_ray_job", "/etc/pthnet/rayjob.json"],
        account=account,
        container={
            "env": [{"name": "RAY_JOB_NAME", "valueFrom": job_name}],
            "volumeMounts": [{"name": "run", "mountPath": "/etc/pthnet", "readOnly": True}],
        },
        volumes=[{"name": "run", "configMap": {"name": f"{name}-run"}}],
    )
    # the run failed: another pod would only find it failed; any other end (evicted, API server away) is worth another
    # pod
    failed = {"action": "FailJob", "onExitCodes": {"containerName": "schedule", "operator": "In", "values": [1]}}
    spec = {
        "schedule": schedule,
        "timeZone": timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": HOUR,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 3,
                "ttlSecondsAfterFinished": 24 * HOUR,
                "podFailurePolicy": {"rules": [failed]},
                "template": pod,
            }
        },
    }
    return [
        _object("v1", "ServiceAccount", on, account, None) | {"automountServiceAccountToken": False},
        role,
        binding,
        _object("v1", "ConfigMap", on, f"{name}-run", None) | {"data": {"rayjob.json": json.dumps(run, indent=1)}},
        _object("batch/v1", "CronJob", on, name, spec),
        _disruption_budget(on),
    ]


def ray_service_spec(on: Deployment, model: str = CHAMPION) -> dict[str, Any]:
    """RayServiceSpec: the champion of the registry behind Ray Serve."""
    serve = {
        "applications": [
            {
                "name": "pthnet",
                "import_path": "workflows.serve_app:build",
                "route_prefix": "/",
                "args": {"model": model, "device": "cpu", "replicas": 2, "cpus": 2},
            }
        ]
    }
    return {
        "serveConfigV2": json.dumps(serve, indent=1),
        "rayClusterConfig": ray_cluster_spec(on, serving=True),
        "serviceUnhealthySecondThreshold": 900,
        "deploymentUnhealthySecondThreshold": 300,
        "excludeHeadPodFromServeSvc": True,
    }


def _disruption_budget(on: Deployment) -> dict[str, Any]:
    """A drained node takes workers and spares the head.

    An integer, for Kubernetes takes nothing else for pods of a custom kind.
    """
    head = {"app.kubernetes.io/instance": on.name, "app.kubernetes.io/component": "head"}
    return _object(
        "policy/v1",
        "PodDisruptionBudget",
        on,
        f"{on.name}-head",
        {"minAvailable": 1, "selector": {"matchLabels": head}},
    )


def _object(version: str, kind: str, on: Deployment, name: str, spec: dict[str, Any] | None) -> dict[str, Any]:
    metadata = {"name": name, "namespace": on.namespace, "labels": labels(on, kind.lower())}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **({} if spec is None else {"spec": spec})}
