"""`pthnet schedule`: what it hands over, and what an alert can ask it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.errors import ClusterError
from workflows.schedule import run, status

CRON = "0 3 * * 1-5"


def printed(capsys: pytest.CaptureFixture[str], form: str, *command: str, **options: object) -> str:
    assert run(*command, cron=CRON, timezone="Europe/Berlin", print_=form, **options) == 0  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_a_crontab_line_runs_the_same_command_without_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "crontab", "extract", "100% of it", state=tmp_path)
    _, zone, line = text.splitlines()
    assert zone == "CRON_TZ=Europe/Berlin"
    assert line.startswith(f"{CRON} cd {Path.cwd()} && {sys.executable} -m workflows.cli schedule --once ")
    assert r"100\% of it" in line
    arguments = shlex.split(line.replace(r"\%", "%"))
    assert arguments[arguments.index("--") :] == ["--", "extract", "100% of it"]
    assert arguments[arguments.index("--state") + 1] == str(tmp_path)


def test_systemd_units_make_up_for_missed_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "systemd", "extract", "100% of $it", state=tmp_path)
    assert "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00 Europe/Berlin\nPersistent=true" in text
    assert '-- extract "100%% of $$it"\n' in text
    assert f"WorkingDirectory={Path.cwd()}\n" in text


@pytest.mark.parametrize(("form", "kind"), [("cronjob", "CronJob"), ("raycronjob", "RayCronJob")])
def test_kubernetes_takes_the_schedule_over(form: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    items = {item["kind"]: item for item in yaml.safe_load_all(printed(capsys, form, "extract", image="r/p:1"))}
    assert (items[kind]["spec"]["schedule"], items[kind]["spec"]["timeZone"]) == (CRON, "Europe/Berlin")
    with pytest.raises(ClusterError, match="--image"):
        run("extract", cron=CRON, print_=form)  # type: ignore[arg-type]


def test_one_run_by_the_command_line_and_its_status(tmp_path: Path) -> None:
    def pthnet(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workflows.cli", "schedule", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    where = ["--state", str(tmp_path), "--name", "nightly"]
    nothing = pthnet("status", *where)
    assert (nothing.returncode, "no schedule in" in nothing.stderr) == (2, True)
    assert pthnet("--once", *where, "--", "--version").returncode == 0
    well = pthnet("status", "--as-json", *where)
    assert (well.returncode, json.loads(well.stdout)["well"]) == (0, True)
    assert pthnet("--once", *where, "--", "no-such-workflow").returncode == 2
    failed = pthnet("status", "--as-json", *where)
    assert failed.returncode == 1
    assert [past["exit_code"] for past in json.loads(failed.stdout)["runs"]] == [0, 2]


@pytest.mark.parametrize(("command", "cron"), [((), CRON), (("extract",), None), (("extract",), "0 25 * * *")])
def test_what_cannot_be_scheduled_is_refused(command: tuple[str, ...], cron: str | None) -> None:
    with pytest.raises(ClusterError):
        run(*command, cron=cron)


def test_status_tells_schedules_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in {"good": 0, "bad": 1}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"runs": [{"started": "x", "exit_code": code}]}))
    assert status(state=tmp_path) == 1
    assert status(state=tmp_path, name="good") == 0
    assert "bad" not in capsys.readouterr().out.split("good")[-1]
