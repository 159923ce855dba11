"""A real Ray cluster with its Jobs API on free loopback ports, started once for the tests that need one."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# read by Ray when it is first imported, so before any test imports it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"

# The command line the jobs below run: shipped as a working directory, it goes before the installed one.
STAND_IN = """
import os, sys, time
print("arguments", sys.argv[1:], flush=True)
if sys.argv[1] == "wait":
    print("waiting", flush=True)
    time.sleep(300)
if sys.argv[1] == "print":
    print(sys.argv[2], "=", os.environ.get(sys.argv[2]), flush=True)
if sys.argv[1] == "leave":
    sys.exit(int(sys.argv[2]))
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a TCP port that nobody listens on now."""
    return _free_port


@pytest.fixture(scope="session")
def jobs_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running cluster's Jobs API; only this cluster's processes are ended afterwards."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PTHNET_TEST_SECRET"] = "held by the cluster"
    port = _free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "gcs_server_port": _free_port(),
            # Ray turns 127.0.0.1 into the outward address, where nothing listens; other loopback addresses stay
            "node_ip_address": "127.0.0.2",
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "dashboard_agent_listen_port": _free_port(),
            "object_store_memory": 100 * 2**20,
        },
    )
    os.environ.clear()
    os.environ.update(before)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a small command line, to ship as a job's working directory."""
    directory = tmp_path_factory.mktemp("stand_in")
    (directory / "workflows").mkdir()
    (directory / "workflows" / "__init__.py").write_text("")
    (directory / "workflows" / "cli.py").write_text(STAND_IN)
    (directory / "nothing.pem").write_text("a private key that must stay behind")
    return str(directory)
