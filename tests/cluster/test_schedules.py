"""A schedule on one machine: runs never overlap, missed times are made up for once, a stop reaches the child."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.cron import Cron
from cluster.errors import ClusterError
from cluster.schedules import Runner, Schedule, healthy, is_running, read_state, run_once

YEARLY = Cron.parse("0 0 1 1 *")
DUE = datetime(2026, 1, 1, tzinfo=UTC)
SERVE = """
import sys
from pathlib import Path
from cluster.cron import Cron
from cluster.schedules import Schedule, serve
sys.exit(serve(Schedule(cron=Cron.parse("0 0 1 1 *"), argv=sys.argv[2:], directory=Path(sys.argv[1]))))
"""
# a child that says it started, and ends with 5 when told to stop
PATIENT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
with Path(sys.argv[1]).open("a") as out: out.write("started\\n")
time.sleep(120)
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def schedule(directory: Path, argv: list[str]) -> Schedule:
    return Schedule(cron=YEARLY, argv=argv, directory=directory)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.02)


def missed(directory: Path) -> None:
    """A state whose next time went by while nobody ran."""
    directory.mkdir(exist_ok=True)
    (directory / "state.json").write_text(json.dumps({"next": (datetime.now(UTC) - timedelta(days=3)).isoformat()}))


def test_a_run_is_written_down_with_its_exit_code_and_what_comes_next(tmp_path: Path) -> None:
    assert Runner(schedule(tmp_path, python("raise SystemExit(3)"))).run_due(DUE) == 3
    state = read_state(tmp_path)
    assert [run["exit_code"] for run in state["runs"]] == [3]
    assert state["running"] is None
    assert datetime.fromisoformat(state["next"]) > datetime.now(UTC)
    assert healthy(state, datetime.now(UTC)) == (False, "the last run ended with exit code 3")


def test_the_child_knows_its_run(tmp_path: Path) -> None:
    out = tmp_path / "id"
    run_once(schedule(tmp_path, python("import os,sys; open(sys.argv[1],'w').write(os.environ['PTHNET_RUN_ID'])", out)))
    assert out.read_text() == read_state(tmp_path)["runs"][0]["run_id"]


def test_of_two_schedulers_one_serves_each_due_time(tmp_path: Path) -> None:
    runners = [Runner(schedule(tmp_path, python(""))) for _ in range(2)]
    assert [runner.run_due(DUE) for runner in runners] == [0, None]
    assert [runner.run_due(DUE + timedelta(minutes=1)) for runner in reversed(runners)] == [0, None]
    assert len(read_state(tmp_path)["runs"]) == 2


def test_a_due_time_during_a_run_is_let_go_and_noted(tmp_path: Path) -> None:
    first, second = (Runner(schedule(tmp_path, python(PATIENT, tmp_path / "out"))) for _ in range(2))
    thread = threading.Thread(target=first.run_due, args=(DUE,))
    thread.start()
    wait_for((tmp_path / "out").exists, "the run to start")
    assert is_running(tmp_path)
    assert second.run_due(DUE + timedelta(days=1)) is None
    assert run_once(schedule(tmp_path, python("raise SystemExit(9)"))) == 0
    first.stop()
    thread.join(60)
    state = read_state(tmp_path)
    assert state["skipped"]["why"] == "the run before is not done"
    assert [run["exit_code"] for run in state["runs"]] == [5]
    assert not is_running(tmp_path)


def test_a_stop_reaches_the_child_and_is_waited_for(tmp_path: Path) -> None:
    missed(tmp_path)
    scheduler = subprocess.Popen(python(SERVE, tmp_path, *python(PATIENT, tmp_path / "out")))
    try:
        wait_for((tmp_path / "out").exists, "the missed run to be made up for")
        wait_for(lambda: read_state(tmp_path).get("running"), "its note")
        scheduler.send_signal(signal.SIGTERM)
        assert scheduler.wait(60) == 0
    finally:
        scheduler.kill()
    assert [run["exit_code"] for run in read_state(tmp_path)["runs"]] == [5]
    assert (tmp_path / "out").read_text() == "started\n"  # three missed days, one run


def test_a_run_outlives_a_killed_scheduler_and_still_nothing_overlaps(tmp_path: Path) -> None:
    missed(tmp_path)
    scheduler = subprocess.Popen(python(SERVE, tmp_path, *python(PATIENT, tmp_path / "out")))
    wait_for(lambda: (tmp_path / "out").exists() and read_state(tmp_path).get("running"), "the run to start")
    scheduler.kill()
    scheduler.wait(60)
    assert is_running(tmp_path)
    assert Runner(schedule(tmp_path, python(""))).run_due(datetime.now(UTC) + timedelta(days=1)) is None
    os.kill(read_state(tmp_path)["running"]["pid"], signal.SIGTERM)
    wait_for(lambda: not is_running(tmp_path), "the run to end")
    assert Runner(schedule(tmp_path, python(""))).run_due(datetime.now(UTC) + timedelta(days=2)) == 0
    assert [run["exit_code"] for run in read_state(tmp_path)["runs"]] == [None, 0]


def test_a_schedule_nobody_serves_is_overdue(tmp_path: Path) -> None:
    missed(tmp_path)
    well, why = healthy(read_state(tmp_path), datetime.now(UTC))
    assert not well
    assert why.startswith("overdue since")
    assert healthy(read_state(tmp_path), datetime.now(UTC), running=True)[0]
    assert not healthy({}, datetime.now(UTC))[0]


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ClusterError, match=r"state\.json cannot be read"):
        read_state(tmp_path)
    with pytest.raises(ClusterError, match="--state"):
        schedule(tmp_path / "state.json" / "below", python(""))


def test_writers_of_the_state_take_turns(tmp_path: Path) -> None:
    runner = Runner(schedule(tmp_path, python("")))
    with (tmp_path / "state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=runner.announce)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(60)
    assert read_state(tmp_path)["cron"] == "0 0 1 1 *"
