"""What a cluster may lose while features are extracted, on a real Ray of several nodes on this machine.

After each loss: every clip is in the table exactly once, and the same run again finds nothing to do.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import jobs
from cluster.job_spec import job_spec
from tests.pipeline import OPTIONS, account, assert_nothing_to_do, many
from workflows.submit import _follow

pytestmark = [pytest.mark.xdist_group("ray_faults"), pytest.mark.timeout(400)]

LOOPBACK = "127.0.0.2"  # 127.0.0.1 would be turned into the outward address
CLIPS = [f"clip-{number:03}" for number in range(120)]
MEMORY = 100 * 2**20  # object store of each node, bytes


class Machines:
    """A cluster whose nodes the tests start and kill; all ports are free ones, all processes its own."""

    def __init__(self, free_port: Callable[[], int]) -> None:
        self.gcs, self.dashboard, self.free_port = free_port(), free_port(), free_port
        self.cluster: Any = None

    def start(self, *, head_cpus: int = 0) -> None:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": head_cpus,
            "gcs_server_port": self.gcs,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": self.dashboard,
            "dashboard_agent_listen_port": self.free_port(),
        }
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, **self._node()})

    def add(self, cpus: int = 2) -> Any:
        agent = {"dashboard_agent_listen_port": self.free_port()}
        return self.cluster.add_node(num_cpus=cpus, **agent, **self._node())

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def _node(self) -> dict[str, Any]:
        return {"node_ip_address": LOOPBACK, "object_store_memory": MEMORY}


@pytest.fixture
def machines(free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    found = Machines(free_port)
    try:
        yield found
    finally:
        found.stop()


def working_on(node: Any, stage: str) -> bool:
    """Whether a process of this node runs a stage of the pipeline, by the title Ray gives it."""
    raylet = node.all_processes["raylet"][0].process.pid
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and stage in (process / "cmdline").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return False


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 150) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)
    return found


def extract(machines: Machines, videos: Path, features: Path, log: Path) -> "subprocess.Popen[bytes]":
    """A driver of its own, as a user starts it."""
    command = [sys.executable, "-m", "workflows.cli", "extract", str(videos), "--features", str(features), *OPTIONS]
    command += ["--address", f"{LOOPBACK}:{machines.gcs}"]
    return subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def assert_each_clip_once(videos: Path, features: Path) -> None:
    assert account(features) == dict.fromkeys(CLIPS, "features")
    assert_nothing_to_do(videos, features)


def test_nodes_killed_while_they_work_cost_no_clip_and_nodes_added_take_over(
    machines: Machines, tmp_path: Path
) -> None:
    videos, features, log = many(tmp_path / "videos", CLIPS), tmp_path / "features", tmp_path / "log"
    machines.start()
    nodes = [machines.add(), machines.add()]
    driver = extract(machines, videos, features, log)
    try:
        wait_for(lambda: any(working_on(node, "ExtractFeatures") for node in nodes), "a forward actor")
        for node in nodes:
            machines.kill(node)
        fresh = [machines.add(), machines.add()]
        wait_for(lambda: any(working_on(node, "ExtractFeatures") for node in fresh), "the forward pass to go on there")
        assert driver.wait(150) == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert_each_clip_once(videos, features)


def test_a_lost_head_loses_the_job_and_the_follower_submits_it_again(
    machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, features = many(tmp_path / "videos", CLIPS), tmp_path / "features"
    machines.start(head_cpus=2)
    client = jobs.client(f"http://127.0.0.1:{machines.dashboard}")
    spec = job_spec(["extract", str(videos), "--features", str(features), *OPTIONS])
    job_id = jobs.submit(client, spec)
    wait_for(lambda: working_on(machines.cluster.head_node, "ExtractFeatures"), "the job's forward actor")
    machines.stop()
    machines.start(head_cpus=2)
    assert _follow(client, spec, job_id, 1, None) == 0
    assert f"submitted again as {job_id}-r1" in capsys.readouterr().err
    assert_each_clip_once(videos, features)
