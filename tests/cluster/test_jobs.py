"""Jobs on a real cluster: submitted, followed, stopped, told apart."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster import jobs
from cluster.errors import ClusterError
from cluster.job_spec import job_spec
from workflows.jobs import jobs as jobs_command
from workflows.submit import _follow, submit

pytestmark = pytest.mark.xdist_group("ray_jobs")


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.2)


def test_the_log_is_streamed_and_the_exit_code_is_the_workflows(
    jobs_address: str, stand_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("leave", "0", address=jobs_address, working_dir=stand_in) == 0
    assert "arguments ['leave', '0']" in capsys.readouterr().out
    assert submit("leave", "7", address=jobs_address, working_dir=stand_in) == 7


def test_a_credential_comes_from_the_cluster_and_never_from_the_job(
    jobs_address: str, stand_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = submit(
        "print",
        "PTHNET_TEST_SECRET",
        address=jobs_address,
        working_dir=stand_in,
        secret=["PTHNET_TEST_SECRET"],
        job_id="with-secret",
    )
    assert code == 0
    assert "PTHNET_TEST_SECRET = held by the cluster" in capsys.readouterr().out
    stored = jobs.details(jobs.client(jobs_address), "with-secret")
    assert "held by the cluster" not in stored.json()


def test_a_missing_credential_fails_the_job_at_once_and_names_it(
    jobs_address: str, stand_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("leave", "0", address=jobs_address, working_dir=stand_in, secret=["NOT_ON_THIS_CLUSTER_TOKEN"]) != 0
    said = capsys.readouterr().out
    assert "NOT_ON_THIS_CLUSTER_TOKEN: is not set on the cluster" in said
    assert "arguments" not in said


def test_a_detached_job_is_listed_shown_and_stopped_and_its_id_is_taken(
    jobs_address: str, stand_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        capsys.readouterr()
        return int(jobs_command([*arguments, "--address", jobs_address], result_action="return_value"))

    assert (
        submit("wait", address=jobs_address, working_dir=stand_in, job_id="waits", detach=True, env=["STAGE=test"]) == 0
    )
    assert capsys.readouterr().out.strip() == "waits"
    with pytest.raises(ClusterError, match="submitted already"):
        submit("wait", address=jobs_address, working_dir=stand_in, job_id="waits", detach=True)
    client = jobs.client(jobs_address)
    wait_for(lambda: "waiting" in client.get_job_logs("waits"), "the job to run")

    assert command("list", "--running", "--as-json") == 0
    assert [json.loads(line)["job"] for line in capsys.readouterr().out.splitlines()] == ["waits"]
    assert command("show", "waits") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["status"], shown["command"], shown["variables"]) == ("RUNNING", "wait", ["STAGE"])
    assert command("stop", "waits") == 0
    assert command("show", "waits") == jobs.STOPPED
    assert command("logs", "waits") == 0
    assert "waiting" in capsys.readouterr().out


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches Python, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("answers", "code", "ended"), [(["go on", "stop"], jobs.STOPPED, True), (["detach"], 0, False)]
)
def test_ctrl_c_asks_and_does_what_is_answered(
    jobs_address: str, stand_in: str, answers: list[str], code: int, ended: bool
) -> None:
    client = jobs.client(jobs_address)
    spec = job_spec(["wait"], working_dir=stand_in)
    job_id = jobs.submit(client, spec)
    wait_for(lambda: "waiting" in client.get_job_logs(job_id), "the job to run")
    left = list(answers)

    def answer() -> str:
        if len(left) > 1:
            interrupt_soon()
        return left.pop(0)

    def interrupt_soon() -> None:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()

    interrupt_soon()
    assert _follow(client, spec, job_id, 0, answer) == code
    assert left == []
    assert jobs.details(client, job_id).status.is_terminal() == ended
    jobs.wait_stopped(client, job_id)


def test_a_job_the_cluster_does_not_know_is_lost(jobs_address: str) -> None:
    with pytest.raises(jobs.JobLost, match="pthnet jobs list"):
        jobs.follow(jobs.client(jobs_address), "never-submitted", print)


def test_an_address_typed_by_the_user_wins_over_the_environment(
    jobs_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert jobs.client(jobs_address).get_address() == jobs_address
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:1 .*--address"):
        jobs.client()


def test_a_log_that_starts_again_after_a_reconnection_is_written_once() -> None:
    written: list[str] = []
    log = jobs._Once(written.append)
    log.take("one two ")
    log.rewind()
    log.take("one ")
    log.take("two three")
    assert "".join(written) == "one two three"
