"""`pthnet` that misbehaves on cue: python -m tests.driver CUE ARGUMENTS..., for tests of drivers that die or wait.

CUE is one of
    before:N    SIGKILL when the N-th commit is about to be made: its shards are written
    between:N   SIGKILL when the N-th commit has made its features visible, and its failures not yet
    after:N     SIGKILL when the N-th commit is made
    wait:PATH   touch PATH.here when the first commit is about to be made, and go on once PATH.go is there
    reader      decode with tests.tasks.bad_readers
    slow:S      every clip takes S seconds to decode, and every shard half a second to write
    resized:S   the same, and the pools are sized again two seconds after the cluster has changed
    stuffed:S   slow, and the object store of every node is full before it starts; says how much was spilled
    full:PATH   fill the disk that PATH lies on after the first commit; when the command has failed, free it and run the
                command again

Every batch makes a commit of its own, except with wait. Where PTHNET_TURN names a path, everything is imported and Ray
joined first; the command begins once that path is there.
"""

import os
import signal
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import storage.quarantine
import tasks.commit
import tasks.shard
import workflows.extract
from cluster.connect import connect
from cluster.resizing import Patience
from tasks.decode_rows import decode_rows
from tests.pipeline import BAD_READER
from workflows import cli

_plain_commit = tasks.commit.commit
_plain_write = tasks.shard.write_rows
_commits = 0


def die(*_: Any, **__: Any) -> None:
    """As sudden as it gets."""
    os.kill(os.getpid(), signal.SIGKILL)


def cued_commit(cue: str, where: str, *arguments: Any) -> int:
    """tasks.commit.commit with a misfortune."""
    global _commits
    _commits += 1
    now = where == str(_commits)
    if cue == "before" and now:
        die()
    if cue == "between" and now:
        storage.quarantine.append = die  # type: ignore[assignment]
    if cue == "wait" and _commits == 1:
        Path(f"{where}.here").touch()
        while not Path(f"{where}.go").exists():
            time.sleep(0.02)
    version = _plain_commit(*arguments)
    if cue == "after" and now:
        die()
    if cue == "full" and _commits == 1:
        fill(Path(where))
    return version


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 512):
                pass
        except OSError as error:
            print("filled:", error, file=sys.stderr, flush=True)


def slow_decode(rows: pa.Table, *, seconds: float, **how: Any) -> pa.Table:
    """Decode, and take one's time."""
    time.sleep(seconds * rows.num_rows)
    return decode_rows(rows, **how)


def slow_write(*blocks: pa.Table, **how: Any) -> Any:
    """Write a shard, and take one's time."""
    time.sleep(0.5)
    return _plain_write(*blocks, **how)


def stuff() -> list[Any]:
    """Objects that fill the object store of every node that works."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
    piece = ray.remote(num_cpus=0)(np.ones)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    held = []
    for node in nodes:
        size = int(node["Resources"]["object_store_memory"] / 8 / 8)  # an eighth, of eight-byte numbers
        held += [piece.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(size) for _ in range(9)]
    ray.wait(held, num_returns=len(held), fetch_local=False)
    return held


def spilled() -> str:
    """What Ray says of spilling."""
    from ray._private.internal_api import memory_summary

    lines = memory_summary(os.environ["RAY_ADDRESS"], stats_only=True).splitlines()
    return next((line for line in lines if line.startswith("Spilled")), "nothing spilled")


def await_turn(turn: Path) -> None:
    """Do what takes most of a command's time, then wait until it is this one's turn, or until nobody will say so."""
    for name in ("torch", "deltalake", "ray.data", "tasks.resolve", "tasks.extract", "pthnet.backbone"):
        import_module(name)
    connect()
    parent = os.getppid()
    while not turn.exists():
        if os.getppid() != parent:
            sys.exit("whose turn it is will not be said any more")
        time.sleep(0.02)


def main() -> int:
    """Run the command line with the cue."""
    if turn := os.environ.get("PTHNET_TURN"):
        await_turn(Path(turn))
    cue, _, where = sys.argv[1].partition(":")
    tasks.commit.commit = partial(cued_commit, cue, where)
    small = {"measure": False} if cue == "wait" else {"shard_bytes": 1, "batch_clips": 4, "measure": False}
    workflows.extract.Settings = partial(workflows.extract.Settings, **small)  # type: ignore[misc,assignment]
    if cue in ("slow", "resized", "stuffed"):
        decode = partial(slow_decode, seconds=float(where))
        workflows.extract.run = partial(workflows.extract.run, decode=decode)
        tasks.shard.write_rows = slow_write
    if cue == "resized":
        soon = Patience(lost_s=2.0, joined_s=2.0)
        workflows.extract.Settings = partial(workflows.extract.Settings, patience=soon)  # type: ignore[misc,assignment]
    ballast = stuff() if cue == "stuffed" else []
    if cue == "reader":
        workflows.extract.run = partial(workflows.extract.run, decode=BAD_READER)
    code = cli.run(sys.argv[2:])
    if ballast:
        print(spilled(), file=sys.stderr, flush=True)
    if cue == "full":
        print("first:", code, file=sys.stderr, flush=True)
        Path(where).unlink()
        code = cli.run(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
