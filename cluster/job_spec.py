"""What a job is: the workflow it runs, what it ships, and all that the cluster will store about it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.credentials import check_names, refuse_secret_text, refuse_secrets
from cluster.errors import ClusterError

# Never shipped with a working directory: history, environments, results, and where people keep credentials.
LEFT_BEHIND = (
    ".git",
    ".venv",
    "venv",
    ".env",
    "*.env",
    ".aws",
    ".ssh",
    ".netrc",
    "*.pem",
    "mlruns",
    "*.db",
    "__pycache__",
)


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is submitted, and all that the cluster will store about it.

    Attributes
    ----------
    name
        The workflow's name; the submission id starts with it.
    entrypoint
        The shell command the cluster runs.
    runtime_env
        Ray's runtime environment: working_dir, image_uri, env_vars, pip, ...
    metadata
        Shown by `pthnet jobs`.
    num_cpus, num_gpus, memory, resources, labels
        Reserved for the driver itself, not for the tasks it starts. memory in bytes.
    """

    name: str
    entrypoint: str
    runtime_env: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    resources: dict[str, float] | None = None
    labels: dict[str, str] | None = None


def job_spec(
    command: Sequence[str],
    *,
    working_dir: str | None = None,
    image: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    needs: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
    python: str = "python",
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
) -> JobSpec:
    """Describe a job that runs `pthnet COMMAND` on the cluster.

    Parameters
    ----------
    command
        The workflow and its arguments, as after `pthnet` on a shell.
    working_dir
        A directory or URI of a zip whose files the job runs in; None runs what the cluster's image has installed.
    image
        A container image for the job's workers (Ray's `image_uri`; needs podman on the nodes).
    runtime_env
        More of Ray's runtime environment.
    env
        Variables to set; credentials are refused.
    needs
        Names of variables (credentials) that must be set on the cluster; the job fails at once, naming the one that
        is not.
    python
        The interpreter's name on the cluster.

    Raises
    ------
    ClusterError
        No command, a credential anywhere in what would be stored, or a working directory that is not there.
    """
    if not command:
        raise ClusterError(
            "nothing to submit; put the workflow after --, as in: pthnet submit -- extract s3://bucket/videos"
        )
    environment: dict[str, Any] = dict(runtime_env or {})
    variables = {**environment.get("env_vars", {}), **(env or {})}
    refuse_secrets(variables)
    if variables:
        environment["env_vars"] = variables
    if image:
        environment["image_uri"] = image
    if working_dir:
        if "://" not in working_dir and not Path(working_dir).is_dir() and not working_dir.endswith(".zip"):
            raise ClusterError(
                f"working directory {working_dir} is not there; give a directory, a .zip or the URI of one"
            )
        environment["working_dir"] = working_dir
        environment["excludes"] = [*environment.get("excludes", []), *LEFT_BEHIND]
    checks = [
        f': "${{{name}:?is not set on the cluster; add it to its environment or secret}}"'
        for name in check_names(needs)
    ]
    entrypoint = " && ".join([*checks, f"exec {python} -m workflows.cli {shlex.join(command)}"])
    stored = {"pthnet_command": shlex.join(command), **(metadata or {})}
    refuse_secret_text(json.dumps([entrypoint, environment, stored], default=str))
    return JobSpec(
        name=command[0],
        entrypoint=entrypoint,
        runtime_env=environment,
        metadata=stored,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory=memory,
        resources=resources,
        labels=labels,
    )
