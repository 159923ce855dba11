"""A cluster with Ray's token authentication lets in those who hold the token."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("ray_token")

TOKEN = "a-token-of-this-test-only"
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
port, gcs, agent = map(int, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args=dict(
    num_cpus=1, gcs_server_port=gcs, node_ip_address="127.0.0.2", include_dashboard=True, dashboard_host="127.0.0.1",
    dashboard_port=port, dashboard_agent_listen_port=agent, object_store_memory=80 * 2**20))
print("READY", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_the_token_decides_who_may_submit(tmp_path: Path, free_port: Callable[[], int]) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    plain = {**os.environ, "PATH": path, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    holder = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    port = free_port()
    agent = free_port()
    start = [sys.executable, "-c", CLUSTER, str(port), str(free_port()), str(agent)]
    cluster = subprocess.Popen(start, env=holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        assert any(line.strip() == "READY" for line in cluster.stdout)
        # what the kubelet asks, which holds no token
        for well in (f"http://127.0.0.2:{agent}/api/local_raylet_healthz", f"http://127.0.0.1:{port}/api/gcs_healthz"):
            with urllib.request.urlopen(well, timeout=30) as answer:
                assert answer.status == 200

        submit = [sys.executable, "-m", "workflows.cli", "submit", "--address", f"http://127.0.0.1:{port}", "--"]

        refused = subprocess.run([*submit, "--version"], env=plain, capture_output=True, text=True, timeout=60)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "RAY_AUTH_TOKEN" in refused.stderr
        assert "Traceback" not in refused.stderr

        leaking = subprocess.run([*submit, "extract", TOKEN], env=holder, capture_output=True, text=True, timeout=60)
        assert leaking.returncode == 2
        assert "value of RAY_AUTH_TOKEN" in leaking.stderr

        accepted = subprocess.run([*submit, "--version"], env=holder, capture_output=True, text=True, timeout=90)
        assert accepted.returncode == 0, accepted.stderr
        assert TOKEN not in accepted.stdout + accepted.stderr
    finally:
        cluster.stdin.close()
        try:
            cluster.wait(30)
        except subprocess.TimeoutExpired:
            cluster.terminate()
            cluster.wait(30)
