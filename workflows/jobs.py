"""See and steer the jobs of a cluster.

pthnet jobs list
pthnet jobs logs pthnet-extract-20260102-030405-1a2b --follow
"""

import json
import time
from typing import TYPE_CHECKING, Any

from cyclopts import App

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

jobs = App(name="jobs", help="List, show, follow and stop the jobs of a cluster.")


@jobs.command(name="list")
def list_jobs(*, address: str | None = None, running: bool = False, as_json: bool = False) -> int:
    """List the cluster's jobs, newest first.

    Parameters
    ----------
    address
        The cluster; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.
    running
        Only those that have not ended.
    as_json
        One JSON object per line.
    """
    from rich.console import Console
    from rich.table import Table

    from cluster import jobs as ray_jobs

    found = [job for job in ray_jobs.client(address).list_jobs() if job.submission_id]
    found.sort(key=lambda job: job.start_time or 0, reverse=True)
    if running:
        found = [job for job in found if not job.status.is_terminal()]
    if as_json:
        for job in found:
            print(json.dumps(describe(job)))
        return 0
    table = Table("job", "status", "started", "took", "command", box=None, pad_edge=False)
    for job in found:
        row = describe(job)
        table.add_row(row["job"], row["status"], row["started"] or "-", _took(row["seconds"]), row["command"])
    Console().print(table if found else "no jobs")
    return 0


@jobs.command
def show(job_id: str, /, *, address: str | None = None) -> int:
    """Show one job as JSON: status, times, message, command; variables by name only.

    Parameters
    ----------
    job_id
        Its submission id.
    address
        The cluster; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.

    Returns
    -------
    int
        The job's exit code; 0 while it runs.
    """
    from cluster import jobs as ray_jobs

    job = ray_jobs.details(ray_jobs.client(address), job_id)
    print(json.dumps(describe(job), indent=2))
    return ray_jobs.exit_code(job) if job.status.is_terminal() else 0


@jobs.command
def logs(job_id: str, /, *, address: str | None = None, follow: bool = False) -> int:
    """Print a job's log.

    Parameters
    ----------
    job_id
        Its submission id.
    address
        The cluster; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.
    follow
        Go on until the job ends; its exit code becomes this command's.
    """
    from cluster import jobs as ray_jobs
    from workflows.submit import write

    client = ray_jobs.client(address)
    ray_jobs.details(client, job_id)
    if follow:
        return ray_jobs.exit_code(ray_jobs.follow(client, job_id, write))
    write(client.get_job_logs(job_id))
    return 0


@jobs.command
def stop(job_id: str, /, *, address: str | None = None) -> int:
    """Stop a job and wait for its end; what it had committed stays.

    Parameters
    ----------
    job_id
        Its submission id.
    address
        The cluster; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.

    Returns
    -------
    int
        0 when it has ended, 1 when it had not within a minute.
    """
    from cluster import jobs as ray_jobs

    client = ray_jobs.client(address)
    ended = ray_jobs.wait_stopped(client, job_id)
    print(f"{job_id} {ray_jobs.details(client, job_id).status.lower() if ended else 'has not stopped within a minute'}")
    return 0 if ended else 1


def describe(job: "JobDetails") -> dict[str, Any]:
    """A job as plain values; environment variables by name only, passwords in URLs hidden."""
    from cluster.credentials import redact

    end = job.end_time or (time.time() * 1000 if not job.status.is_terminal() else None)
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "command": redact((job.metadata or {}).get("pthnet_command") or job.entrypoint),
        "started": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(job.start_time / 1000)) if job.start_time else None,
        "seconds": round((end - job.start_time) / 1000, 1) if end and job.start_time else None,
        "exit_code": job.driver_exit_code,
        "message": redact(job.message or ""),
        "variables": sorted((job.runtime_env or {}).get("env_vars", {})),
        "metadata": {key: redact(value) for key, value in (job.metadata or {}).items() if key != "pthnet_command"},
    }


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
