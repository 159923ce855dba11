"""Real MLflow servers for tests, each a process on loopback: tracking over SQLite or PostgreSQL, and scoring."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.servers import free_port

POSTGRES = all(shutil.which(name) for name in ("initdb", "postgres"))


@contextmanager
def process(
    command: Sequence[str], ready: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A server with its children for as long as it is needed; `ready` is an address that answers when it is up."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    lean = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
    settings = {**inherited, **lean, **(environment or {})}
    with log.open("w") as out:
        server = subprocess.Popen(command, env=settings, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait(ready, server, log)
        yield
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError(f"{address} does not answer:\n{log.read_text()[-3000:]}")


@contextmanager
def tracking_server(
    folder: Path,
    *,
    store: str | None = None,
    artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """`mlflow server` that passes artifacts through itself; its address."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store or f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", artifacts or str(folder / "artifacts")),
    ]
    with process(command, f"http://127.0.0.1:{port}/health", folder / "server.log", environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def scoring_server(model: str, tracking_uri: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve`; the address to post to."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"),
        *("-h", "127.0.0.1", "-p", str(port), "--workers", "1"),
    ]
    environment = {"MLFLOW_TRACKING_URI": tracking_uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with process(command, f"http://127.0.0.1:{port}/ping", folder / "scoring.log", environment):
        yield f"http://127.0.0.1:{port}/invocations"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """PostgreSQL on a loopback port with a database of its own; its SQLAlchemy address."""
    data, port = folder / "postgres", free_port()
    data.mkdir()
    user = None
    if os.getuid() == 0:  # it refuses to run as root
        user = "nobody"
        shutil.chown(data, user)
        for parent in [folder, *folder.parents]:
            if os.stat(parent).st_uid == 0 and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run(
        ["initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync", "-E", "UTF8"],
        check=True, user=user, capture_output=True, cwd="/",
    )  # fmt: skip
    settings = ("listen_addresses=127.0.0.1", f"unix_socket_directories={data}", "fsync=off", "shared_buffers=16MB")
    options = [part for setting in settings for part in ("-c", setting)]
    with (folder / "postgres.log").open("w") as log:
        server = subprocess.Popen(
            ["postgres", "-D", data, "-p", str(port), *options], user=user, cwd="/", stdout=log, stderr=log
        )
    address = f"mlflow@127.0.0.1:{port}/postgres"
    try:
        _until_connected(f"postgresql://{address}", server)
        yield f"postgresql+psycopg2://{address}"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(30)


def _until_connected(address: str, server: subprocess.Popen[bytes]) -> None:
    import psycopg2

    until = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(address).close()
            return
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.1)
