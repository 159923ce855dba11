"""Run a workflow on a schedule, without Kubernetes.

pthnet schedule --cron "0 3 * * *" --timezone Europe/Berlin -- extract s3://videos --features s3://features
pthnet schedule status
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from cluster.cron import Cron
from cluster.errors import ClusterError

Form = Literal["crontab", "systemd", "raycronjob", "cronjob"]

schedule = App(
    name="schedule", help="Run a workflow on a schedule: never twice at once, missed times made up for once."
)


@schedule.default
def run(
    *command: str,
    cron: str | None = None,
    timezone: str = "Etc/UTC",
    name: str | None = None,
    state: Path | None = None,
    catch_up: bool = True,
    once: bool = False,
    grace_s: float = 300.0,
    print_: Annotated[Form | None, Parameter(name="--print")] = None,
    image: str | None = None,
    namespace: str = "pthnet",
) -> int:
    """Run `pthnet COMMAND` whenever CRON is due, until SIGTERM or Ctrl-C, which the running command gets too.

    Parameters
    ----------
    command
        The workflow and its arguments, after `--`; `submit -- extract ...` sends each run to a cluster.
    cron
        Five crontab fields, or @daily and the like.
    timezone
        IANA name of the zone that cron is read in.
    name
        Of the schedule; default: the workflow's name. Schedules of one name never run at the same time.
    state
        Directory for state and locks; default: ~/.local/state/pthnet (or XDG_STATE_HOME).
    catch_up
        When due times passed while nothing ran, run once at once.
    once
        Run now and return the exit code, unless a run is going on: for crontab and systemd.
    grace_s
        Seconds a run may take to end after a stop, before it is killed.
    print_
        Hand the schedule to something else: print it as crontab, systemd units, or manifest, and do nothing.
    image
        Container image, for the manifests.
    namespace
        Kubernetes namespace, for the manifests.

    Returns
    -------
    int
        0 after a stop; with --once the command's exit code.
    """
    from cluster.schedules import Schedule, run_once, serve

    if not command:
        raise ClusterError(
            'nothing to schedule; put the workflow after --: pthnet schedule --cron "0 3 * * *" -- extract videos/'
        )
    if cron is None and not once:
        raise ClusterError(
            'when? pass --cron "MINUTE HOUR DAY MONTH WEEKDAY", as in --cron "0 3 * * *" for 03:00 every day'
        )
    when = Cron.parse(cron, timezone) if cron else None
    directory = (state or _default_state()) / (name or command[0])
    if print_:
        if when is None:
            raise ClusterError("--print needs --cron")
        print(_printed(print_, command, when, directory, image, namespace), end="")
        return 0
    planned = Schedule(cron=when, argv=[*_pthnet(), *command], directory=directory, grace_s=grace_s)
    return run_once(planned) if once else serve(planned, catch_up=catch_up)


@schedule.command
def status(*, state: Path | None = None, name: str | None = None, as_json: bool = False) -> int:
    """Show every schedule's last run and next time; exit code 1 when one failed or is overdue, for an alert.

    Parameters
    ----------
    state
        Directory of the schedules; default: ~/.local/state/pthnet (or XDG_STATE_HOME).
    name
        Only this one.
    as_json
        One JSON object per schedule, its last runs included.
    """
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from cluster.schedules import healthy, is_running, read_state

    root = state or _default_state()
    found = sorted(path.parent for path in root.glob("*/state.json") if name in (None, path.parent.name))
    if not found:
        raise ClusterError(f"no schedule in {root}; start one with pthnet schedule, or pass its --state")
    table = Table("schedule", "well", "last run", "exit code", "next", "why", box=None, pad_edge=False)
    well = True
    for directory in found:
        now = read_state(directory)
        good, why = healthy(now, datetime.now(UTC), running=is_running(directory))
        well &= good
        if as_json:
            print(json.dumps({"schedule": directory.name, "well": good, "why": why, **now}))
            continue
        last = (now.get("runs") or [{}])[-1]
        table.add_row(
            directory.name,
            "yes" if good else "NO",
            last.get("started", "-"),
            str(last.get("exit_code", "-")),
            now.get("next") or "-",
            why,
        )
    if not as_json:
        Console().print(table)
    return 0 if well else 1


def _pthnet() -> list[str]:
    """The command line of this very installation."""
    return [sys.executable, "-m", "workflows.cli"]


def _default_state() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pthnet"


def _printed(
    form: Form, command: tuple[str, ...], when: Cron, directory: Path, image: str | None, namespace: str
) -> str:
    from cluster.handover import crontab, systemd

    if form in ("raycronjob", "cronjob"):
        from cluster.kubernetes import manifests
        from cluster.pods import Deployment
        from workflows.manifests import render

        if image is None:
            raise ClusterError(f"a {form} runs an image; pass --image registry.example/pthnet:0.1.0")
        on = Deployment(image=image, namespace=namespace)
        return render(manifests(form, on, command=command, schedule=when.expression, timezone=when.timezone))
    kept = ["--name", directory.name, "--state", str(directory.parent.resolve())]
    times = ["--cron", when.expression, "--timezone", when.timezone]
    argv = [*_pthnet(), "schedule", "--once", *times, *kept, "--", *command]
    here = str(Path.cwd())
    if form == "crontab":
        return crontab(when, argv, here)
    return systemd(when, argv, f"pthnet-{directory.name}", here)
