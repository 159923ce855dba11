"""Tells a user whose run stands still that the cluster has no core, or GPU, left for it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

WAIT_S = 30.0  # where there is room a worker is placed within seconds, also where its process then starts slowly
LOOK_S = 2.0


@contextmanager
def waiting_said(say: Callable[[str], None], worker: str, remedy: str, before: float = 0.0) -> Iterator[None]:
    """Look from time to time, and say once for each spell of waiting that there is no room.

    Parameters
    ----------
    say
        Told in one line.
    worker
        Part of the class name of the actors that need room.
    remedy
        What a user can do.
    before
        Cores that must be free for what comes before any of them; while they are, nothing is amiss.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(say, worker, remedy, before, over), name="waiting", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join(LOOK_S)


def _watch(say: Callable[[str], None], worker: str, remedy: str, before: float, over: threading.Event) -> None:
    from ray.exceptions import RayError

    since, said = None, False
    with suppress(RayError, ConnectionError):  # of a cluster that is gone the run itself will tell
        while not over.wait(min(LOOK_S, WAIT_S)):
            if not (room := without_room(worker, before)):
                since, said = None, False
                continue
            since = since or time.monotonic()
            if not said and time.monotonic() - since >= WAIT_S:
                said = True
                say(
                    f"waiting: no worker of this run has found room for {WAIT_S:.0f} s ({room} free). It starts when "
                    f"what holds them ends, another run say, or when nodes join; {remedy}"
                )


def without_room(worker: str, before: float) -> str:
    """What is free of the cluster, while there is no place for any such worker of this run; else ""."""
    import ray
    from ray._private.state import state

    if not ray.is_initialized():
        return ""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    workers = [a for a in state.actor_table(None, job, None).values() if worker in a["ActorClassName"]]
    living = [a for a in workers if a["State"] != "DEAD"]
    if any(a["Address"]["NodeID"].strip("f") for a in living):  # all ones: no node
        return ""
    free, there = ray.available_resources(), ray.cluster_resources()
    if not living and 0 < before <= free.get("CPU", 0.0):
        return ""
    return ", ".join(f"{free.get(name, 0):g} of {there[name]:g} {name}s" for name in ("CPU", "GPU") if there.get(name))
