"""The pods of a Ray cluster on Kubernetes: who they are, what they may do, what they ask for.

Everything runs as an unprivileged user without capabilities; workers hold no service-account token; credentials come
from a Kubernetes secret as environment variables, so no manifest holds one.
"""

from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError

USER = 1000  # the image's user
DASHBOARD_PORT = 8265
AGENT_PORT = 52365  # each node's dashboard agent; answers without a token when the raylet is well

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Everything that differs between one installation and another.

    Attributes
    ----------
    image
        The image of this project (see the Dockerfile), with a tag or digest.
    name, namespace
        Of the objects; at most 24 characters, since KubeRay and CronJob append to it.
    secret
        Kubernetes secret whose keys become environment variables (AWS_*, MLFLOW_TRACKING_TOKEN, ...).
    settings
        Kubernetes config map whose keys become environment variables (AWS_ENDPOINT_URL, MLFLOW_TRACKING_URI, ...);
        may be absent.
    ray_version
        The image's.
    decode_min, decode_max, decode_cpus, decode_memory
        The CPU pool: nodes at rest and at most, and each node's size.
    extract_min, extract_max, extract_cpus, extract_memory, extract_gpus
        The GPU pool, likewise.
    spot
        "key=value" of the node label of spot nodes: both pools run there and tolerate a taint of that key; the head
        does not.
    operator_namespace
        Where KubeRay runs: the only other namespace that may reach the cluster's ports.
    """

    image: str
    name: str = "pthnet"
    namespace: str = "pthnet"
    secret: str = "pthnet-credentials"
    settings: str = "pthnet-settings"
    ray_version: str = "2.60.0"
    decode_min: int = 0
    decode_max: int = 8
    decode_cpus: int = 8
    decode_memory: str = "32Gi"
    extract_min: int = 0
    extract_max: int = 4
    extract_cpus: int = 4
    extract_memory: str = "32Gi"
    extract_gpus: int = 1
    spot: str | None = None
    operator_namespace: str = "kuberay-operator"

    def __post_init__(self) -> None:
        if not self.image or self.image.endswith(":latest") or ":" not in self.image.rsplit("/", 1)[-1]:
            raise ClusterError(
                f"image {self.image!r} has no fixed tag; name one or a digest, so that all nodes run the same code"
            )
        if len(self.name) > 24:
            raise ClusterError(f"name {self.name!r} is longer than 24 characters; KubeRay and CronJob append to it")
        for pool, least, most in (
            ("decode", self.decode_min, self.decode_max),
            ("extract", self.extract_min, self.extract_max),
        ):
            if not 0 <= least <= most:
                raise ClusterError(f"{pool} pool: the least nodes must lie in 0..{most}, found {least}")
        if self.spot is not None and not all(self.spot.partition("=")):
            raise ClusterError(f"spot takes the node label key=value of spot nodes, found {self.spot!r}")


def labels(on: Deployment, part: str) -> dict[str, str]:
    """The labels every object and pod carries."""
    return {
        "app.kubernetes.io/name": "pthnet",
        "app.kubernetes.io/instance": on.name,
        "app.kubernetes.io/component": part,
        "app.kubernetes.io/part-of": "pthnet",
    }


def ray_cluster_spec(on: Deployment, *, serving: bool = False) -> dict[str, Any]:
    """RayClusterSpec: a head without work, a CPU pool that decodes and a GPU pool that extracts and trains.

    Parameters
    ----------
    serving
        For a RayService: the readiness probes are left to KubeRay, which adds the Serve proxy's health to them.
    """
    return {
        "rayVersion": on.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "upscalingMode": "Default",
            "securityContext": CONTAINER_SECURITY,
            "resources": _fixed(cpu="500m", memory="512Mi"),
        },
        "headGroupSpec": {
            # no work on the head: losing a worker costs the work in flight, losing the head costs the run
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"},
            "template": _pod(on, "head", "ray-head", _fixed(cpu="2", memory="8Gi"), serving=serving),
        },
        "workerGroupSpecs": [
            _pool(
                on,
                "decode",
                on.decode_min,
                on.decode_max,
                _fixed(cpu=str(on.decode_cpus), memory=on.decode_memory),
                serving=serving,
            ),
            _pool(
                on,
                "extract",
                on.extract_min,
                on.extract_max,
                _fixed(cpu=str(on.extract_cpus), memory=on.extract_memory, gpus=on.extract_gpus),
                serving=serving,
            ),
        ],
    }


def environment(on: Deployment) -> dict[str, Any]:
    """The variables of every container that runs our code: named sources, no values that matter."""
    return {
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            # Ray ends a process that was idle for a second where a node has more of them than cores; to start one anew
            # takes longer than most decode tasks.
            {"name": "RAY_idle_worker_killing_time_threshold_ms", "value": "60000"},
            # The features of a clip that is served travel within a message.
            {"name": "RAY_max_direct_call_object_size", "value": str(4 << 20)},
            {"name": "AWS_REQUEST_CHECKSUM_CALCULATION", "value": "when_required"},
            {"name": "PTHNET_LOG", "value": "json"},
        ],
        "envFrom": [
            {"configMapRef": {"name": on.settings, "optional": True}},
            {"secretRef": {"name": on.secret}},
        ],
    }


def single_pod(
    on: Deployment,
    part: str,
    command: list[str] | None = None,
    *,
    account: str | None = None,
    variables: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A pod template that runs one command to its end, hardened like the others; KubeRay fills in its submitter's."""
    container = {
        "name": part,
        "image": on.image,
        **({"command": command} if command else {}),
        "securityContext": CONTAINER_SECURITY,
        "resources": _fixed(cpu="500m", memory="512Mi"),
        **(environment(on) if variables else {}),
        **more.pop("container", {}),
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": account is not None,
        "securityContext": POD_SECURITY,
        "containers": [container],
        **more,
    }
    if account:
        spec["serviceAccountName"] = account
    return {"metadata": {"labels": labels(on, part)}, "spec": spec}


def _pool(
    on: Deployment, name: str, least: int, most: int, resources: dict[str, Any], *, serving: bool
) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "labels": {"pool": name},  # Ray's node label: `--decode-on pool=decode`
        "rayStartParams": {},
        "template": _pod(on, name, f"ray-{name}", resources, serving=serving),
    }


def _pod(on: Deployment, part: str, container: str, resources: dict[str, Any], *, serving: bool) -> dict[str, Any]:
    head = part == "head"
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # autoscaler v2 replaces pods and knows no restarted ones
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                "name": container,
                "image": on.image,
                "securityContext": CONTAINER_SECURITY,
                "resources": resources,
                **environment(on),
                **({} if serving else _probes(head)),
                "volumeMounts": [{"name": "ray", "mountPath": "/tmp/ray"}],
                **({"ports": _ports(serving)} if head else {}),
            }
        ],
        # logs, and objects spilled when memory is full
        "volumes": [{"name": "ray", "emptyDir": {"sizeLimit": "50Gi"}}],
    }
    if not head:  # the head's autoscaler asks Kubernetes for pods, so it needs its token; nobody else does
        spec["automountServiceAccountToken"] = False
        spec.update(_on_spot(on))
        if "nvidia.com/gpu" in resources["limits"]:
            gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            spec["tolerations"] = [*spec.get("tolerations", []), gpu]
    return {"metadata": {"labels": labels(on, part)}, "spec": spec}


def _on_spot(on: Deployment) -> dict[str, Any]:
    if on.spot is None:
        return {}
    key, _, value = on.spot.partition("=")
    return {
        "nodeSelector": {key: value},
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"}],
    }


def _ports(serving: bool) -> list[dict[str, Any]]:
    ports = [("gcs-server", 6379), ("dashboard", DASHBOARD_PORT), ("client", 10001), ("metrics", 8080)]
    return [{"name": name, "containerPort": port} for name, port in [*ports, *([("serve", 8000)] if serving else [])]]


def _probes(head: bool) -> dict[str, Any]:
    well = {"httpGet": {"path": "/api/local_raylet_healthz", "port": AGENT_PORT}, "timeoutSeconds": 5}
    ready = {"httpGet": {"path": "/api/gcs_healthz", "port": DASHBOARD_PORT}, "timeoutSeconds": 5} if head else well
    return {
        "startupProbe": {**well, "periodSeconds": 5, "failureThreshold": 60},
        "livenessProbe": {**well, "periodSeconds": 10, "failureThreshold": 12},
        "readinessProbe": {**ready, "periodSeconds": 10, "failureThreshold": 3},
    }


def _fixed(*, cpu: str, memory: str, gpus: int = 0) -> dict[str, Any]:
    """Requests equal to limits: Ray plans with limits, and a pod over its memory request is the first evicted."""
    amounts: dict[str, Any] = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": gpus} if gpus else {})}
    return {"requests": amounts, "limits": amounts}
