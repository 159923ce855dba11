"""The CronJob's pod: creates the run once, waits for its end and reports it, against an API server on loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.await_ray_job import Refused, run

PATH = "/apis/ray.io/v1/namespaces/lab/rayjobs"
TOKEN = "token of the account"


@contextmanager
def api_server(states: list[Any], jobs: dict[str, Any]) -> Iterator[str]:
    """Kubernetes' answers for RayJobs; each look at a job's status takes the next state, the last one stays."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["metadata"]["name"]
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(403, {"message": "may not create rayjobs"})
            elif name in jobs:
                self.answer(409, {"message": "already exists"})
            else:
                jobs[name] = body
                self.answer(201, body)

        def do_GET(self) -> None:
            state = states.pop(0) if len(states) > 1 else states[0]
            if self.path.removeprefix(f"{PATH}/") not in jobs:
                self.answer(404, {"message": "not found"})
            elif isinstance(state, int):
                self.answer(state, {"message": "unwell"})
            else:
                self.answer(200, {"status": state})

        def answer(self, code: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "namespace").write_text("lab")
    return tmp_path


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 1"}


@pytest.mark.parametrize(
    ("states", "code"), [([None, {}, RUNNING, DONE], 0), ([RUNNING, FAILED], 1), ([RUNNING, 503, RUNNING, DONE], 0)]
)
def test_it_waits_for_the_end_and_reports_it(account: Path, states: list[Any], code: int) -> None:
    jobs: dict[str, Any] = {}
    manifest = {"kind": "RayJob", "metadata": {"labels": {"a": "b"}}, "spec": {}}
    with api_server(states, jobs) as url:
        assert run(manifest, name="nightly-1", url=url, account=account, poll_s=0.01) == code
    assert jobs["nightly-1"]["metadata"] == {"name": "nightly-1", "namespace": "lab", "labels": {"a": "b"}}
    assert manifest["metadata"] == {"labels": {"a": "b"}}


def test_a_replaced_pod_waits_for_the_run_that_is_there(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {"nightly-1": {"first": True}}
    with api_server([DONE], jobs) as url:
        assert run({}, name="nightly-1", url=url, account=account, poll_s=0.01) == 0
    assert jobs == {"nightly-1": {"first": True}}
    assert "there already" in capsys.readouterr().out


def test_what_kubernetes_refuses_is_said(account: Path) -> None:
    (account / "token").write_text("another")
    with api_server([DONE], {}) as url, pytest.raises(Refused, match="403 may not create rayjobs"):
        run({}, name="nightly-1", url=url, account=account, poll_s=0.01)


def test_a_deleted_run_is_no_success(account: Path) -> None:
    jobs: dict[str, Any] = {"nightly-1": {}}
    with api_server([RUNNING], jobs) as url:
        threading.Timer(0.2, jobs.clear).start()
        with pytest.raises(Refused, match="deleted"):
            run({}, name="nightly-1", url=url, account=account, poll_s=0.01)
