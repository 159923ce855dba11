"""Run a workflow on a Ray cluster and follow it.

pthnet submit --address http://head:8265 -- extract s3://videos --features s3://features
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from cluster.job_spec import JobSpec

DETACHED = 0


def submit(
    *command: str,
    address: str | None = None,
    working_dir: str | None = None,
    image: str | None = None,
    runtime_env: Path | None = None,
    env: list[str] | None = None,
    secret: list[str] | None = None,
    job_id: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    memory: int | None = None,
    resource: list[str] | None = None,
    label: list[str] | None = None,
    python: str = "python",
    follow: bool = True,
    detach: bool = False,
    resubmit: int = 1,
) -> int:
    """Run `pthnet COMMAND` on a Ray cluster; its log is streamed and its exit code becomes this command's.

    Ctrl-C asks whether to stop the job, leave it running or go on following.

    Parameters
    ----------
    command
        The workflow and its arguments, after `--`.
    address
        The cluster: http(s)://HOST:8265, HOST:PORT or ray://HOST:PORT.
        Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.
    working_dir
        Ship this directory (or URI of a zip) and run in it; default: run what the cluster's image has installed.
    image
        Container image for the job (Ray's image_uri).
    runtime_env
        YAML file with more of Ray's runtime environment.
    env
        NAME=VALUE to set for the job. Credentials are refused: they would be stored in clear.
    secret
        NAME of a variable that the cluster's own environment must hold; the job fails at once where it does not.
    job_id
        Submission id; default: a new one. The same id is refused twice, so a caller that retries cannot start two jobs.
    cpus
        Reserved for the driver itself; the tasks reserve their own.
    gpus
        Likewise.
    memory
        Likewise, bytes.
    resource
        NAME=AMOUNT of a custom resource for the driver.
    label
        KEY=VALUE of the node the driver must run on, on demand rather than spot, say.
    python
        The interpreter's name on the cluster.
    follow
        Stream the log and wait for the end.
    detach
        Return as soon as the job is accepted; the same as --no-follow.
    resubmit
        Submit again, at most this often, when the cluster lost the job (head restarted, driver's node gone), never
        after a failure of the workflow itself.

    Returns
    -------
    int
        The workflow's exit code; 130 when it was stopped; 0 when detached.
    """
    from cluster import jobs
    from cluster.job_spec import job_spec

    spec = job_spec(
        command,
        working_dir=working_dir,
        image=image,
        runtime_env=_read_runtime_env(runtime_env),
        env=pairs(env, "--env"),
        needs=secret or (),
        python=python,
        num_cpus=cpus,
        num_gpus=gpus,
        memory=memory,
        resources={name: _number(value, name) for name, value in pairs(resource, "--resource").items()} or None,
        labels=pairs(label, "--label") or None,
    )
    client = jobs.client(address)
    submitted = jobs.submit(client, spec, job_id)
    print(f"submitted {submitted} to {client.get_address()}", file=sys.stderr)
    if detach or not follow:
        print(submitted)
        return DETACHED
    return _follow(client, spec, submitted, resubmit, ask if sys.stdin.isatty() else None)


def _follow(
    client: "JobSubmissionClient", spec: "JobSpec", job_id: str, resubmit: int, question: Callable[[], str] | None
) -> int:
    """Follow a job to its end, through interruptions and, where allowed, through its loss."""
    from cluster import jobs

    running = job_id
    again = 0
    while True:
        try:
            state = jobs.follow(client, running, write)
        except jobs.JobLost as lost:
            if again == resubmit:
                raise
            again += 1
            running = jobs.submit(client, spec, f"{job_id}-r{again}")
            print(f"{lost}; submitted again as {running}", file=sys.stderr)
        except KeyboardInterrupt:
            answer = question() if question else "detach"
            if answer == "stop":
                ended = jobs.wait_stopped(client, running)
                print(f"{running} {'stopped' if ended else 'was asked to stop and has not yet'}", file=sys.stderr)
                return jobs.STOPPED
            if answer == "detach":
                print(f"{running} goes on; follow it: pthnet jobs logs {running} --follow", file=sys.stderr)
                return DETACHED if question else jobs.STOPPED
        else:
            code = jobs.exit_code(state)
            print(f"{running} {state.status.lower()}" + (f": {state.message}" if code else ""), file=sys.stderr)
            return code


def ask() -> str:
    """What to do with a job whose follower was interrupted: "stop", "detach" or "go on"."""
    choices = {"s": "stop", "d": "detach", "g": "go on"}
    while True:
        try:
            answer = (
                input("\n[s]top the job, [d]etach and leave it running, or [g]o on following? ").strip().lower()[:1]
            )
        except (KeyboardInterrupt, EOFError):
            return "detach"
        if answer in choices:
            return choices[answer]


def write(piece: str) -> None:
    """Pass a piece of a job's log on to standard output."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE strings as a dictionary; a missing `=` or name is an error the user can fix."""
    found = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise ClusterError(
                f"{option} takes NAME=VALUE, found {name!r} alone; a credential the cluster holds is named by --secret"
            )
        found[name] = value
    return found


def _number(value: str, name: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ClusterError(f"--resource {name} takes an amount, found {value!r}") from None


def _read_runtime_env(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    if not path.is_file():
        raise ClusterError(f"runtime environment {path} is not there; give a YAML file as Ray describes it")
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict):
        raise ClusterError(f"runtime environment {path} must hold a mapping (pip, env_vars, working_dir, ...)")
    return found
