"""Run a command again and again on one machine: never twice at once, missed times made up for once, state on disk.

A schedule is a directory: `state.json` (what it runs, its next time, its last runs), `run.lock` held for as long as a
run lives, and `state.lock` for the moment of a write. Several schedulers may share the directory; each due time is run
by one of them.
"""

import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.cron import Cron
from cluster.errors import ClusterError
from cluster.logs import RUN_VARIABLE, logger, new_run_id

KEPT_RUNS = 50
LATE = timedelta(minutes=5)  # a due time that nobody ran for this long means that no scheduler runs


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What recurs, when, and where its state is kept.

    Attributes
    ----------
    cron
        When; None when something else decides (`run_once`).
    argv
        The child process.
    directory
        Of the state; made when it is not there.
    grace_s
        How long a run may take to end after the scheduler was told to stop, before it is killed.
    """

    cron: Cron | None
    argv: Sequence[str]
    directory: Path
    grace_s: float = 300.0

    def __post_init__(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClusterError(
                f"the schedule's state cannot be kept in {self.directory} ({error.strerror}); pass --state DIR"
            ) from error

    def next_after(self, moment: datetime) -> datetime | None:
        """The first due time after a moment; None when there will be none."""
        if self.cron is None:
            return None
        found = self.cron.trigger().get_next_fire_time(None, moment + timedelta(microseconds=1))
        return found.astimezone(UTC) if found else None


def read_state(directory: Path) -> dict[str, Any]:
    """The state of a schedule; empty when it has none yet.

    Raises
    ------
    ClusterError
        The file is not what a scheduler wrote.
    """
    path = directory / "state.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise ClusterError(f"{path} cannot be read ({error}); remove it to start afresh") from error


def is_running(directory: Path) -> bool:
    """Whether a run of this schedule goes on, under this scheduler or one that is gone."""
    try:
        with (directory / "run.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def healthy(state: dict[str, Any], now: datetime, *, running: bool = False) -> tuple[bool, str]:
    """Whether a schedule does its work, and the reason: for an alert."""
    if not state:
        return False, "no schedule has run here"
    runs = state.get("runs", [])
    due = state.get("next")
    if not running and due and now - datetime.fromisoformat(due) > LATE:
        return False, f"overdue since {due}: no scheduler runs"
    if runs and runs[-1]["exit_code"] != 0:
        return False, f"the last run ended with exit code {runs[-1]['exit_code']}"
    if running:
        return True, f"running since {(state.get('running') or {}).get('started', 'a moment ago')}"
    return True, f"next {due}" if due else "no further time"


class Runner:
    """Runs a schedule's command when it is due."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.log = logger("pthnet.schedule")
        self.stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._idle = threading.Event()
        self._idle.set()

    def run_due(self, due: datetime | None = None) -> int | None:
        """Run the command unless it runs already or this due time was served; returns its exit code, None when skipped.

        Parameters
        ----------
        due
            The time this run is for; None is the current minute.
        """
        now = datetime.now(UTC)
        due = due or now.replace(second=0, microsecond=0)
        if self.stopping:
            return None
        with self._run_lock() as lock:
            if lock is None:
                self.skip("the run before is not done")
                return None
            served = read_state(self.schedule.directory).get("served")
            if served and datetime.fromisoformat(served) >= due:
                return None
            return self._run(due, lock)

    def skip(self, why: str) -> None:
        """Record a due time that was let go."""
        self.log.warning("skipped", extra={"why": why})
        now = datetime.now(UTC)
        with self._state() as state:
            state["skipped"] = {"at": _iso(now), "why": why}
            state["next"] = _iso(self.schedule.next_after(now))

    def announce(self) -> None:
        """Write down what is scheduled and when it is due next."""
        with self._state() as state:
            state["command"] = list(self.schedule.argv)
            state["cron"] = self.schedule.cron.expression if self.schedule.cron else None
            state["timezone"] = self.schedule.cron.timezone if self.schedule.cron else None
            state["next"] = _iso(self.schedule.next_after(datetime.now(UTC)))
            self.log.info("scheduled", extra={"next": state["next"], "cron": state["cron"]})

    def stop(self) -> None:
        """Pass the order to stop on to the running child; a second time, kill it."""
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGKILL if self.stopping else signal.SIGTERM)
        self.stopping = True

    def wait(self) -> None:
        """Wait for the running child, and kill it when it outlives its grace."""
        if not self._idle.wait(self.schedule.grace_s):
            self.log.warning("killed", extra={"after_s": self.schedule.grace_s})
            self.stop()
            self._idle.wait()

    def _run(self, due: datetime, lock: int) -> int:
        run_id = new_run_id()
        started = datetime.now(UTC)
        self._idle.clear()
        try:
            # The child inherits the lock: should this process be killed, the lock lives as long as the run does. It
            # gets a session of its own, so that a Ctrl-C reaches it once, through us.
            self._child = subprocess.Popen(
                list(self.schedule.argv),
                env={**os.environ, RUN_VARIABLE: run_id},
                pass_fds=[lock],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
            if self.stopping:
                self._child.send_signal(signal.SIGTERM)
            with self._state() as state:
                if state.get("running"):  # we hold the lock, so that run is over and its scheduler was killed
                    lost = {**state["running"], "exit_code": None, "why": "its scheduler was killed"}
                    state["runs"] = [*state.get("runs", []), lost][-KEPT_RUNS:]
                state["served"] = _iso(due)
                state["next"] = _iso(self.schedule.next_after(datetime.now(UTC)))
                state["running"] = {"run_id": run_id, "pid": self._child.pid, "started": _iso(started)}
            self.log.info("started", extra={"run_id": run_id, "pid": self._child.pid})
            code = self._child.wait()
            code = 128 - code if code < 0 else code  # killed by signal n: 128 + n, as a shell reports it
            ended = datetime.now(UTC)
            took = round((ended - started).total_seconds(), 1)
            with self._state() as state:
                run = {
                    "run_id": run_id,
                    "due": _iso(due),
                    "started": _iso(started),
                    "ended": _iso(ended),
                    "exit_code": code,
                }
                state["runs"] = [*state.get("runs", []), run][-KEPT_RUNS:]
                state["running"] = None
            (self.log.info if code == 0 else self.log.error)(
                "ended", extra={"run_id": run_id, "exit_code": code, "seconds": took}
            )
            return code
        finally:
            self._child = None
            self._idle.set()

    @contextmanager
    def _run_lock(self) -> Iterator[int | None]:
        descriptor = os.open(self.schedule.directory / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        """The state, to change; written in one piece when done."""
        with (self.schedule.directory / "state.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = read_state(self.schedule.directory)
            yield state
            path = self.schedule.directory / "state.json"
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(state, indent=1))
            fresh.replace(path)


def serve(schedule: Schedule, *, catch_up: bool = True) -> int:
    """Run a schedule until SIGTERM or Ctrl-C, which are passed on to a running child and waited out; returns 0.

    Parameters
    ----------
    catch_up
        When due times passed while no scheduler ran, run once at once.
    """
    from apscheduler.events import EVENT_JOB_MAX_INSTANCES
    from apscheduler.schedulers.blocking import BlockingScheduler

    if schedule.cron is None:
        raise ClusterError("a schedule that is to be served needs a cron expression")
    runner = Runner(schedule)
    missed = read_state(schedule.directory).get("next") if catch_up else None
    runner.announce()
    now = datetime.now(UTC)
    scheduler = BlockingScheduler(timezone=UTC)
    options: dict[str, Any] = {"id": "run", "coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    if missed and datetime.fromisoformat(missed) < now:
        runner.log.info("catching up", extra={"missed": missed})
        options["next_run_time"] = now
    scheduler.add_job(runner.run_due, schedule.cron.trigger(), **options)
    scheduler.add_listener(lambda _: runner.skip("the run before is not done"), EVENT_JOB_MAX_INSTANCES)

    def stop() -> None:
        if scheduler.running:
            scheduler.shutdown(wait=False)

    with _signals(runner, stop):
        scheduler.start()
        runner.wait()
    return 0


def run_once(schedule: Schedule) -> int:
    """Run a schedule's command now and return its exit code; 0 and a note when a run goes on already."""
    runner = Runner(schedule)
    runner.announce()
    with _signals(runner, lambda: None):
        code = runner.run_due(datetime.now(UTC))
    return 0 if code is None else code


@contextmanager
def _signals(runner: Runner, also: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C go to the running child; what comes after them is the caller's."""

    def stop(number: int, frame: FrameType | None) -> None:
        runner.log.info("stopping", extra={"signal": signal.Signals(number).name})
        runner.stop()
        also()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
