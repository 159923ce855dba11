"""What a cluster may lose while features are extracted and models trained, on a real Ray of several nodes here.

After each loss: every clip is in the table exactly once, and the same run again finds nothing to do; a training ends
with the weights of one that lost nothing.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import jobs
from cluster.job_spec import job_spec
from cluster.schedules import Schedule, run_once
from tests.archives import write_archive
from tests.pipeline import OPTIONS, account, many, tiny
from workflows.extract import Settings, listed, planned
from workflows.submit import _follow

pytestmark = [pytest.mark.xdist_group("ray_faults"), pytest.mark.timeout(400)]

LOOPBACK = "127.0.0.2"  # 127.0.0.1 would be turned into the outward address
CLIPS = [f"clip-{number:03}" for number in range(60)]
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 100 * 2**20  # object store of each node, bytes
LAB = "name: lab\nclasses: [Happy, Sad, Neutral]\nfolds: 2\nschedule: {epochs: 40, milestones: [30]}\n"


class Machines:
    """A cluster whose nodes the tests start and kill; all ports are free ones, all processes its own."""

    def __init__(self, free_port: Callable[[], int]) -> None:
        self.gcs, self.dashboard, self.free_port = free_port(), free_port(), free_port
        self.cluster: Any = None

    def start(self) -> None:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0,
            "_system_config": {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000},
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


@pytest.fixture(scope="module")
def cluster(free_port: Callable[[], int]) -> Iterator[Machines]:
    """A head without work, for all tests of this file: most of their time would be its start."""
    found = Machines(free_port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
        found.start()
        try:
            yield found
        finally:
            found.stop()


@pytest.fixture
def machines(cluster: Machines) -> Iterator[Machines]:
    """The cluster, whose working nodes last for one test."""
    yield cluster
    for node in list(cluster.cluster.worker_nodes):
        cluster.kill(node)
    wait_for(lambda: len(alive(cluster)) == 1, "the head to be left alone")


def processes(node: Any) -> dict[int, str]:
    """The raylet of a node and what it started, by process id: their titles, which Ray sets to what they do."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if raylet in (parent, int(process.name)):
                found[int(process.name)] = (process / "cmdline").read_text()
    return found


def working_on(node: Any, stage: str) -> bool:
    """Whether a process of this node runs a stage of the pipeline."""
    return any(stage in title for title in processes(node).values())


def send(number: signal.Signals, receivers: Iterable[int]) -> None:
    for process in receivers:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def alive(machines: Machines) -> list[Any]:
    """The nodes that the head takes to be alive."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    address = f"{LOOPBACK}:{machines.gcs}"
    state._initialize_global_state(GcsClientOptions.create(address, None, True, True))
    try:
        return [node for node in state.node_table() if node["Alive"]]
    finally:
        state.disconnect()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 150) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)
    return found


class Driver:
    """A driver in a process of its own, as a user starts `pthnet`."""

    def __init__(self, machines: Machines, module: str, arguments: list[str], log: Path) -> None:
        self.log = log
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": f"{LOOPBACK}:{machines.gcs}"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something to happen while it runs."""

        def happened() -> bool:
            assert self.process.poll() is None, f"it ended before {what}:\n{self.said()}"
            return bool(condition())

        wait_for(happened, what)

    def ends_well(self) -> str:
        """Wait for its end; what it printed."""
        assert self.process.wait(150) == 0, self.said()
        return self.said()


class Extraction(Driver):
    """`tests.driver CUE extract`."""

    def __init__(self, machines: Machines, cue: str, folder: Path) -> None:
        self.videos, self.features = many(folder / "videos", CLIPS), folder / "features"
        arguments = [cue, "extract", str(self.videos), "--features", str(self.features), *OPTIONS]
        super().__init__(machines, "tests.driver", arguments, folder / "log")

    def ends_well(self) -> str:
        said = super().ends_well()
        assert_each_clip_once(self.videos, self.features)
        return said


def assert_each_clip_once(videos: Path, features: Path) -> None:
    assert account(features) == dict.fromkeys(CLIPS, "features")
    assert planned_again(videos, features)["known"] == len(CLIPS)


def planned_again(videos: Path, features: Path) -> dict[str, int]:
    return planned(listed([str(videos)]), str(features), tiny(), Settings()).counts


@pytest.mark.exhaustive
def test_nodes_killed_while_they_extract_and_while_they_write_cost_no_clip_and_nodes_added_take_over(
    machines: Machines, tmp_path: Path
) -> None:
    nodes = [machines.add(), machines.add()]
    with Extraction(machines, "slow:0.05", tmp_path) as driver:
        for stage in ("write", "ExtractFeatures"):
            driver.until(lambda: any(working_on(node, stage) for node in nodes), stage)  # noqa: B023
            machines.kill(next(node for node in nodes if working_on(node, stage)))
            nodes = list(machines.cluster.worker_nodes)
        assert not nodes
        fresh = [machines.add(), machines.add()]
        driver.until(lambda: any(working_on(node, "ExtractFeatures") for node in fresh), "the forward pass to go on")
        driver.ends_well()


@pytest.mark.exhaustive
def test_a_run_is_sized_again_for_nodes_lost_for_good_and_for_nodes_that_join(
    machines: Machines, tmp_path: Path
) -> None:
    nodes = [machines.add(), machines.add()]
    with Extraction(machines, "resized:0.3", tmp_path) as driver:
        driver.until(lambda: all(working_on(node, "ExtractFeatures") for node in nodes), "two forward actors")
        machines.kill(nodes[0])
        driver.until(lambda: "nodes lost: the cluster has 2 CPUs" in driver.said(), "the pools to be made smaller")
        joined = machines.add()
        driver.until(lambda: "nodes joined: the cluster has 4 CPUs" in driver.said(), "the pools to be made larger")
        driver.until(lambda: working_on(joined, "ExtractFeatures"), "a forward actor on the node that joined")
        driver.ends_well()


@pytest.mark.exhaustive
def test_full_object_stores_spill_and_a_node_cut_off_and_back_costs_nothing(machines: Machines, tmp_path: Path) -> None:
    nodes = [machines.add(), machines.add()]
    with Extraction(machines, "stuffed:0.05", tmp_path) as driver:
        driver.until(lambda: all(working_on(node, "ExtractFeatures") for node in nodes), "forward actors")
        frozen = list(processes(nodes[0]))
        send(signal.SIGSTOP, frozen)
        driver.until(lambda: len(alive(machines)) == 2, "the cluster to give the node up")  # the head and the other
        machines.add()
        send(signal.SIGCONT, frozen)  # it learns that it was given up, and leaves
        said = driver.ends_well()
    assert "Spilled" in said


@pytest.mark.exhaustive
def test_a_job_submitted_twice_and_a_tick_during_a_job_leave_each_clip_once_and_the_loser_says_why(
    machines: Machines, tmp_path: Path
) -> None:
    machines.add()
    videos, features, cue = many(tmp_path / "videos", CLIPS), tmp_path / "features", tmp_path / "cue"
    client = jobs.client(f"http://127.0.0.1:{machines.dashboard}")
    command = ["extract", str(videos), "--features", str(features), *OPTIONS]
    plain = job_spec(command)
    slow = replace(plain, entrypoint=f"cd {ROOT} && exec python -m tests.driver wait:{cue} {shlex.join(command)}")
    loser = jobs.submit(client, slow, "twice-1")
    wait_for(lambda: Path(f"{cue}.here").exists(), "the first job to be about to commit")
    tick = [sys.executable, "-m", "workflows.cli", "submit", "--address", client.get_address(), "--", *command]
    assert run_once(Schedule(cron=None, argv=tick, directory=tmp_path / "schedule")) == 0
    Path(f"{cue}.go").touch()
    ended = jobs.follow(client, loser, lambda _: None)
    assert jobs.exit_code(ended) == 2
    said = client.get_job_logs(loser)
    assert "another run of 'pthnet/" in said
    assert "Traceback" not in said
    assert_each_clip_once(videos, features)


def test_a_lost_head_loses_the_job_and_the_follower_submits_it_again(
    machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, features = many(tmp_path / "videos", CLIPS), tmp_path / "features"
    client = jobs.client(f"http://127.0.0.1:{machines.dashboard}")
    spec = job_spec(["extract", str(videos), "--features", str(features), *OPTIONS])
    worker = machines.add()
    job_id = jobs.submit(client, spec)
    wait_for(lambda: working_on(worker, "ExtractFeatures"), "the job's forward actor")
    machines.stop()
    machines.start()
    machines.add()
    assert _follow(client, spec, job_id, 1, None) == 0
    assert f"submitted again as {job_id}-r1" in capsys.readouterr().err
    assert_each_clip_once(videos, features)


@pytest.mark.exhaustive
def test_nodes_lost_while_training_cost_at_most_an_epoch_and_change_no_bit_of_the_weights(
    machines: Machines, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path, folds=2)
    (archive.lists / "lab.yaml").write_text(LAB)
    command = ["train", "--features", archive.features, "--benchmark", str(archive.lists / "lab.yaml")]
    command += ["--lists", str(archive.lists), "--fold", "1", "--directions", "forward", "--dim", "32"]
    command += ["--mlp-dim", "32", "--workers", "2", "--no-figures", "--register", "none", "--run-name", "study"]

    def training(name: str) -> Driver:
        return Driver(machines, "workflows.cli", [*command, "--out", str(tmp_path / name)], tmp_path / f"{name}.log")

    def reached(name: str) -> int:
        with suppress(FileNotFoundError):
            return int(json.loads((tmp_path / name / "study/fold-1-forward/progress.json").read_text())["epoch"])
        return 0

    first = [machines.add(), machines.add()]
    with training("whole") as driver:
        driver.ends_well()
    with training("robbed") as driver:
        driver.until(lambda: reached("robbed") > 2, "some epochs to end")
        machines.kill(first[0])
        driver.until(lambda: "waiting: no worker of this run has found room" in driver.said(), "it to say why it waits")
        machines.add()
        before = reached("robbed")
        driver.until(lambda: reached("robbed") > before + 2, "the training to go on")
        machines.kill(first[1])  # the second of them: whatever lay on either is lost by now
        machines.add()
        driver.ends_well()
    ours, theirs = (
        (tmp_path / name / "study/model-fold-1/forward.safetensors").read_bytes() for name in ("robbed", "whole")
    )
    assert ours == theirs
