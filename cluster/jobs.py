"""Jobs on a Ray cluster through its Jobs API: submit, follow, stop.

The address is an http(s) URL of the dashboard, "host:port" of the head, "ray://host:port", or None for
RAY_API_SERVER_ADDRESS, RAY_ADDRESS or the Ray that runs on this machine. Token authentication is Ray's own:
RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH in the environment of whoever submits.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.errors import ClusterError
from cluster.job_spec import JobSpec

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

STOPPED = 130  # exit code of a job that was stopped, as of a command that was interrupted
WATCH_S = 0.5  # between two looks at a job's status
QUIET_S = 5.0  # a job may take this long to start before its reason is shown
PATIENCE_S = 120.0  # how long a silent cluster is waited for: a head pod is usually back within this
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# How Ray marks a job that died with its node; the command itself had not failed.
_LOST_WITH_ITS_NODE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")


class JobLost(ClusterError):
    """The cluster no longer knows the job, or its driver died with a node: submit it again."""


def client(address: str | None = None) -> "JobSubmissionClient":
    """Connect to a cluster's Jobs API.

    Raises
    ------
    ClusterError
        Nothing answers there, or it wants a token; says which variable to set.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(
        logging.WARNING
    )  # Ray sets INFO, and tells of web sockets
    where = address or next(
        (os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), "this machine's Ray"
    )
    try:
        with _address_wins(address):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise _unauthorised(where) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray Jobs API answers at {where} ({_first_line(error)}); pass --address http://HEAD:8265, the "
            "dashboard's (on Kubernetes: kubectl port-forward service/NAME-head-svc 8265)"
        ) from error


def submit(jobs: "JobSubmissionClient", spec: JobSpec, submission_id: str | None = None) -> str:
    """Submit a job; returns its submission id.

    Raises
    ------
    ClusterError
        The id is taken, the token is wrong, or the cluster refuses the request.
    """
    from ray.exceptions import AuthenticationError

    wanted = submission_id or new_submission_id(spec.name)
    try:
        return jobs.submit_job(
            entrypoint=spec.entrypoint,
            submission_id=wanted,
            runtime_env=spec.runtime_env,
            metadata=dict(spec.metadata),
            entrypoint_num_cpus=spec.num_cpus,
            entrypoint_num_gpus=spec.num_gpus,
            entrypoint_memory=spec.memory,
            entrypoint_resources=spec.resources,
            entrypoint_label_selector=spec.labels,
        )
    except AuthenticationError as error:
        raise _unauthorised(jobs.get_address()) from error
    except (RuntimeError, ValueError, OSError) as error:
        if "already exists" in str(error):
            raise ClusterError(f"job {wanted} was submitted already; see it with: pthnet jobs show {wanted}") from error
        raise ClusterError(f"the cluster refused the job: {_first_line(error)}") from error


def details(jobs: "JobSubmissionClient", job_id: str) -> "JobDetails":
    """What the cluster knows of a job; JobLost where it knows nothing."""
    from ray.exceptions import AuthenticationError

    try:
        return jobs.get_job_info(job_id)
    except AuthenticationError as error:
        raise _unauthorised(jobs.get_address()) from error
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise JobLost(f"the cluster knows no job {job_id}; list them with: pthnet jobs list") from error
        raise


def follow(
    jobs: "JobSubmissionClient", job_id: str, write: Callable[[str], object], *, patience_s: float = PATIENCE_S
) -> "JobDetails":
    """Write a job's log as it grows until the job ends, through lost connections.

    Parameters
    ----------
    write
        Called with pieces of the log, each piece once.
    patience_s
        How long the cluster may be silent before giving up on it; the job goes on.

    Returns
    -------
    JobDetails
        The job in its final state.

    Raises
    ------
    JobLost
        The cluster came back without the job, or the driver died with its node.
    ClusterError
        The cluster stayed silent.
    """
    import aiohttp

    log = _Once(write)
    silent_since: float | None = None
    pending_since: float | None = None
    said = ""
    while True:
        try:
            state = details(jobs, job_id)
            silent_since = None
            if state.status == "PENDING":
                pending_since = pending_since or time.monotonic()
                if state.message and state.message != said and time.monotonic() - pending_since > QUIET_S:
                    said = state.message
                    write(f"{said}\n")
            else:
                log.rewind()
                asyncio.run(_tail(jobs, job_id, log))
                state = details(jobs, job_id)
            if state.status.is_terminal():
                if state.error_type in _LOST_WITH_ITS_NODE:
                    raise JobLost(f"job {job_id} died with its node: {state.message}")
                return state
        except ClusterError:
            raise
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                write(f"the cluster does not answer ({_first_line(error)}); waiting up to {patience_s:.0f} s\n")
            if now - silent_since > patience_s:
                raise ClusterError(
                    f"no answer for {patience_s:.0f} s; the job may still run: pthnet jobs logs {job_id} --follow"
                ) from error
        time.sleep(WATCH_S)


def exit_code(state: "JobDetails") -> int:
    """The exit code that stands for a job's end: the command's own, 0 when it succeeded, 130 when it was stopped."""
    if state.status == "SUCCEEDED":
        return 0
    if state.status == "STOPPED":
        return STOPPED
    code = state.driver_exit_code
    return code if code and 0 < code < 256 else 1


def wait_stopped(jobs: "JobSubmissionClient", job_id: str, *, timeout_s: float = 60.0) -> bool:
    """Ask a job to stop and wait for its end; True when it has ended."""
    details(jobs, job_id)
    jobs.stop_job(job_id)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if details(jobs, job_id).status.is_terminal():
            return True
        time.sleep(0.25)
    return False


def new_submission_id(name: str) -> str:
    """A readable id that sorts by time: pthnet-extract-20260102-030405-1a2b."""
    return f"pthnet-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


async def _tail(jobs: "JobSubmissionClient", job_id: str, log: "_Once") -> None:
    """Pass the log on until the job ends. Ray closes the stream some five seconds later, so the end is watched for."""

    async def stream() -> None:
        async for piece in jobs.tail_job_logs(job_id):
            log.take(piece)

    async def end() -> None:
        while not (await asyncio.to_thread(details, jobs, job_id)).status.is_terminal():
            await asyncio.sleep(WATCH_S)

    both = [asyncio.create_task(stream()), asyncio.create_task(end())]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
    if both[1] in done:
        log.rewind()
        log.take(await asyncio.to_thread(jobs.get_job_logs, job_id))


class _Once:
    """Passes a text on, each part once, though its source starts from the beginning after every reconnection."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._written = 0
        self._seen = 0

    def rewind(self) -> None:
        self._seen = 0

    def take(self, piece: str) -> None:
        fresh = piece[max(0, self._written - self._seen) :]
        self._seen += len(piece)
        if fresh:
            self._written += len(fresh)
            self._write(fresh)


@contextmanager
def _address_wins(address: str | None) -> Iterator[None]:
    """Ray lets its address variables override an explicit address: the wrong cluster for whoever typed one."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ} if address else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _unauthorised(where: str) -> ClusterError:
    return ClusterError(
        f"the Ray cluster at {where} wants a token, or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
        "RAY_AUTH_TOKEN_PATH) to the cluster's (KubeRay: kubectl get secret CLUSTER -o jsonpath={.data.auth_token})"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
