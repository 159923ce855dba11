"""`pthnet` that misbehaves on cue: python -m tests.driver CUE ARGUMENTS..., for tests of drivers that die or wait.

CUE is one of
    before:N    SIGKILL when the N-th commit is about to be made: its shards are written
    between:N   SIGKILL when the N-th commit has made its features visible, and its failures not yet
    after:N     SIGKILL when the N-th commit is made
    wait:PATH   touch PATH.here when the first commit is about to be made, and go on once PATH.go is there
    reader      decode with tests.tasks.bad_readers
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

import storage.quarantine
import tasks.commit
import workflows.extract
from cluster.connect import connect
from tests.pipeline import BAD_READER
from workflows import cli

_plain_commit = tasks.commit.commit
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
    if cue == "reader":
        workflows.extract.run = partial(workflows.extract.run, decode=BAD_READER)
    code = cli.run(sys.argv[2:])
    if cue == "full":
        print("first:", code, file=sys.stderr, flush=True)
        Path(where).unlink()
        code = cli.run(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
