"""Ends a Ray Data execution whose pools no longer fit the cluster, so that it can be started again with ones that do.

Ray Data starts the actors of a lost node again wherever there is room. When nodes are lost for good, those can take the
cores that decoding needs, while the work they hold waits for just that decoding: nothing moves any more. A pool that
breathes does not get out of it either, since none of its actors is idle. A node that joins, on the other hand, is of
no use to pools of a fixed size. Starting again costs the work in flight, so both must have lasted for a while.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.pools import Pools

LOOK_S = 2.0  # between two looks at the cluster
GROWTH = 1.25  # a pool that could be this many times larger is worth starting again for


class PoolsMisfit(Exception):
    """The cluster is no longer what the pools were sized for; what was under way is to be planned again."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds a misfit must last before it is acted on: a lost node may come back, and nodes join in groups."""

    lost_s: float = 30.0
    joined_s: float = 60.0


def lost(pools: Pools, resources: Mapping[str, float]) -> bool:
    """Whether the cluster has become too small for the pools, and still has something to run on."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    fits = (
        cpus + 1e-6 >= pools.gpu_actors * pools.actor_cpus + pools.decode_cpus
        and gpus + 1e-6 >= pools.gpu_actors * pools.actor_gpus
    )
    return cpus > 0 and gpus >= pools.actor_gpus and not fits


def joined(pools: Pools, fresh: Pools) -> bool:
    """Whether pools sized now would be larger by so much that starting again is worth it."""
    return fresh.device == pools.device and (
        fresh.gpu_actors >= pools.gpu_actors * GROWTH
        or (fresh.decode_tasks >= pools.decode_tasks * GROWTH and fresh.gpu_actors >= pools.gpu_actors)
    )


def watch(dataset: Any, pools: Pools, sized: Callable[[], Pools], patience: Patience) -> Any:
    """Make a dataset's execution raise `PoolsMisfit` once the cluster has changed for good.

    Parameters
    ----------
    dataset
        A Ray Data dataset that has not run yet.
    pools
        What its stages were sized with.
    sized
        Sizes them for the cluster as it is now; must be picklable, as Ray ships the dataset's context to its workers.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    settings = {"pools": pools, "sized": staticmethod(sized), "patience": patience}
    watching = type("WatchingPools", (_Watch, ExecutionCallback), settings)
    dataset.context.custom_execution_callback_classes = [watching]
    return dataset


class _Watch:
    """Looks at the cluster between the steps of an execution; Ray Data makes one for each."""

    pools: Pools
    sized: Callable[[], Pools]
    patience: Patience

    def __init__(self) -> None:
        self._looked = 0.0
        self._since: dict[str, float] = {}

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data's scheduling loop, in its thread; what is raised here ends the execution."""
        import ray

        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        resources = ray.cluster_resources()
        too_small = lost(self.pools, resources)
        why = self._lasting("lost", too_small, self.patience.lost_s, now) or self._lasting(
            "joined", not too_small and self._joined(resources), self.patience.joined_s, now
        )
        if why:
            for operator in executor._topology:
                for pool in operator.get_autoscaling_actor_pools():
                    pool.shutdown(force=True)  # they may wait for ever, on cores that the next pools need
            raise PoolsMisfit(f"nodes {why}: the cluster has {resources.get('CPU', 0):g} CPUs now")

    def _joined(self, resources: Mapping[str, float]) -> bool:
        there = resources.get("CPU", 0.0) > 0 and resources.get("GPU", 0.0) >= self.pools.actor_gpus
        return there and joined(self.pools, self.sized())

    def _lasting(self, what: str, is_so: bool, patience_s: float, now: float) -> str | None:
        if not is_so:
            self._since.pop(what, None)
            return None
        return what if now - self._since.setdefault(what, now) >= patience_s else None
