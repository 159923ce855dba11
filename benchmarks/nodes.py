"""Planning and committing on clusters of one to many nodes: what the driver pays for their number.

python -m benchmarks.nodes --nodes 1 --nodes 8

The nodes are Ray's own (raylet, object store, agents, workers), all on this machine; its cores do not grow with them.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from cyclopts import App

from benchmarks.machine import keep, table
from benchmarks.scale import clip_table, null_decode

app = App(help=__doc__)
ADDRESS = "127.0.0.2"  # Ray would turn 127.0.0.1 into the outward address
CPUS = 2  # of a node
STORE = 100 * 2**20  # object store of each node, bytes


@app.default
def main(*, nodes: tuple[int, ...] = (1, 2, 4, 8), clips: int = 10_000, commits: int = 20, name: str = "nodes") -> None:
    """Extract zeros for so many clips on clusters of so many nodes.

    Parameters
    ----------
    nodes
        Working nodes of two CPUs each, beside a head without any.
    clips
        Without decoder and backbone.
    commits
        About as many commits a run, so that their cost is seen.
    """
    started = multiprocessing.get_context("spawn")  # a Ray of its own for every row
    rows = []
    for count in nodes:
        answer = started.Queue()
        process = started.Process(target=_measure, args=(count, clips, commits, answer))
        process.start()
        rows.append(answer.get())
        process.join()
        print(*rows[-1], flush=True)
    header = ["nodes", "plan s", "plan again s", "commits", "ms/commit", "run s", "clips/s"]
    notes = [f"{clips:,} clips, null decoder and backbone, local disk. Commits and plans are the driver's.", ""]
    keep(name, table("Planning and committing by the number of nodes", header, rows, notes))


def _measure(count: int, clips: int, commits: int, answer: Any) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from pthnet.backbone import build_backbone
    from workflows.extract import Settings, planned, run

    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")  # as docs/cluster.md has it
    node = {"node_ip_address": ADDRESS, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    for _ in range(count):
        cluster.add_node(num_cpus=CPUS, **node)
    extractor = build_backbone("null", precision="bf16").extractor
    wanted = clip_table(clips)
    rows_a_shard = clips // commits
    settings = Settings(batch_clips=rows_a_shard, shard_bytes=1, measure=False)
    with tempfile.TemporaryDirectory() as folder:
        features = str(Path(folder) / "features")
        began = time.perf_counter()
        planned(wanted, features, extractor, settings)
        first = time.perf_counter() - began
        report = run(wanted, features, extractor, settings=settings, address=cluster.address, decode=null_decode)
        began = time.perf_counter()
        again = planned(wanted, features, extractor, settings)
        second = time.perf_counter() - began
    assert report.done == clips, report
    assert not again.todo.num_rows, again
    each = 1000 * report.seconds["commit"] / report.commits
    answer.put(
        [
            str(count),
            f"{first:.2f}",
            f"{second:.2f}",
            str(report.commits),
            f"{each:.0f}",
            f"{report.wall_s:.1f}",
            f"{clips / report.wall_s:.0f}",
        ]
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    app()
