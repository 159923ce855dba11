"""How a cluster's CPUs and GPUs are shared between decoding and the forward pass.

Pure arithmetic over what `ray.cluster_resources()` reports, so a workflow can print the split before anything starts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cluster.errors import ClusterError

Device = Literal["cuda", "cpu"]

# Threads a CPU forward actor can use well; past this a second actor is worth more than more threads.
CPU_ACTOR_THREADS = 8
# Decoding a clip costs a small part of a ViT forward on the same cores: one core in four keeps the others fed.
CPU_DECODE_SHARE = 0.25
HEAD_RESOURCE = "node:__internal_head__"


@dataclass(frozen=True, kw_only=True)
class Pools:
    """The sizes of the two pools of an extraction.

    Attributes
    ----------
    gpu_actors
        Forward actors to start with (on CPU when `device` is "cpu").
    max_actors
        Forward actors to grow to when the cluster grows; equals `gpu_actors` unless asked for more.
    actor_cpus, actor_gpus
        What each forward actor reserves.
    decode_tasks
        Decode tasks that may run at once.
    decode_cpus
        What each decode task reserves; 0 where the actors reserve the cores of decoding too.
    device
        Where the forward pass runs.
    """

    gpu_actors: int
    max_actors: int
    actor_cpus: float
    actor_gpus: float
    decode_tasks: int
    decode_cpus: float
    device: Device


def pool_sizes(
    resources: Mapping[str, float],
    max_cpus: float | None = None,
    max_gpus: float | None = None,
    *,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    elastic: bool = False,
    node_cpus: float | None = None,
    gpu_fraction: float = 1.0,
    actor_cpus: float | None = None,
    decode_cpus: float = 1.0,
    together: bool = False,
) -> Pools:
    """Split a cluster between decoding and the forward pass.

    Parameters
    ----------
    resources
        The cluster's totals, as `ray.cluster_resources()` gives them; "CPU" and "GPU" are read.
    max_cpus, max_gpus
        Ceilings of this run, for a cluster that others use too; None takes everything. `max_gpus=0` runs on CPU.
    device
        "auto" takes GPUs when there are any.
    elastic
        The cluster may grow (autoscaler, nodes added later): pools may outgrow today's nodes, up to the ceilings given.
        With `max_gpus` the forward pool asks for GPUs even when none is up yet, and an autoscaler adds them.
    node_cpus
        CPUs of the smallest node that should hold a forward actor; an actor on CPU never reserves more. None takes the
        mean over the nodes that `resources` lists.
    gpu_fraction
        GPUs per forward actor: 0.5 puts two actors on each.
    actor_cpus
        CPUs per forward actor; None means 1 beside a GPU, and a node-sized group of at most 8 on CPU.
    decode_cpus
        CPUs per decode task.
    together
        On CPU, let each actor reserve the cores of the decoding that feeds it, and decode tasks none. Two runs on one
        cluster, or the actors of lost nodes, can then never hold every core while nobody decodes for them: an actor
        that finds no room waits.

    Returns
    -------
    Pools
        At least one actor and one decode task. On a machine of one core each reserves half of it.

    Raises
    ------
    ClusterError
        No CPUs, GPUs asked for where there are none, or a nonsensical ceiling or fraction.
    """
    have_cpus = float(resources.get("CPU", 0.0))
    have_gpus = float(resources.get("GPU", 0.0))
    if max_cpus is not None and max_cpus <= 0:
        raise ClusterError(f"max_cpus must be above 0, found {max_cpus:g}; leave it out to use every CPU")
    if max_gpus is not None and max_gpus < 0:
        raise ClusterError(f"max_gpus must be 0 or more, found {max_gpus:g}; 0 runs on CPU")
    if not (0 < gpu_fraction <= 1 or (gpu_fraction > 0 and float(gpu_fraction).is_integer())):
        raise ClusterError(f"gpu_fraction must lie in (0, 1] or be a whole number, found {gpu_fraction:g}")
    if decode_cpus <= 0 or (actor_cpus is not None and actor_cpus <= 0):
        raise ClusterError("decode_cpus and actor_cpus must be above 0; leave them out for the defaults")
    cpus = _bounded(have_cpus, max_cpus, elastic)
    if cpus <= 0:
        raise ClusterError(
            "the cluster reports no CPUs; wait for a worker node, or pass max_cpus on a cluster that grows on demand"
        )
    gpus = _bounded(have_gpus, max_gpus, elastic and device != "cpu")

    if device == "cuda" and gpus < gpu_fraction:
        raise ClusterError(
            f"device cuda was asked for and this run may use {gpus:g} GPUs of the cluster's {have_gpus:g}; "
            "run with device cpu, raise max_gpus, or on an autoscaling cluster pass max_gpus to have GPU nodes started"
        )
    if device != "cpu" and gpus >= gpu_fraction:
        return _on_gpus(cpus, min(have_gpus, gpus), gpus, gpu_fraction, actor_cpus or 1.0, decode_cpus)
    if node_cpus is None:
        # one "node:ADDRESS" entry each, plus a second one for the head
        nodes = sum(amount for name, amount in resources.items() if name.startswith("node:") and name != HEAD_RESOURCE)
        node_cpus = max(1.0, math.floor(have_cpus / nodes)) if nodes and have_cpus else None
    pools, room = _on_cpus(min(have_cpus, cpus) or cpus, cpus, node_cpus, actor_cpus, decode_cpus)
    return _together(pools, room) if together else pools


def pool_options(where: str | None) -> dict[str, Any]:
    """Ray options that keep a pool on chosen nodes.

    Parameters
    ----------
    where
        "key=value[,key=value]" selects nodes by Ray label; "name" or "name:amount" reserves a custom resource; None
        leaves it to Ray.

    Returns
    -------
    dict
        Keyword arguments for `.options(...)` or Ray Data's `ray_remote_args`.

    Examples
    --------
    >>> pool_options("pool=decode")
    {'label_selector': {'pool': 'decode'}}
    >>> pool_options("decode_slot:0.5")
    {'resources': {'decode_slot': 0.5}}
    """
    if not where:
        return {}
    if "=" in where:
        labels = {}
        for part in where.split(","):
            key, _, value = part.partition("=")
            if not key.strip() or not value.strip():
                raise ClusterError(f"a node label reads key=value, found {part!r} in {where!r}")
            labels[key.strip()] = value.strip()
        return {"label_selector": labels}
    name, _, amount = where.partition(":")
    try:
        share = float(amount) if amount else 1.0
    except ValueError:
        share = -1.0
    if not name or share <= 0:
        raise ClusterError(f"a custom resource reads name or name:amount with an amount above 0, found {where!r}")
    if name in ("CPU", "GPU", "memory"):
        raise ClusterError(
            f"{name} is not a custom resource; use max_cpus, max_gpus or a node label such as pool=decode"
        )
    return {"resources": {name: share}}


def _bounded(have: float, ceiling: float | None, elastic: bool) -> float:
    if ceiling is None:
        return have
    return ceiling if elastic else min(have, ceiling)


def _on_gpus(cpus: float, now: float, later: float, fraction: float, actor_cpus: float, decode_cpus: float) -> Pools:
    ceiling = int(later / fraction + 1e-9)
    actors = max(1, int(now / fraction + 1e-9))
    # few cores beside the GPUs: an actor mostly waits on its device, so it gives way before decoding has none
    if actors * actor_cpus + decode_cpus > cpus:
        actor_cpus = max(0.0, math.floor((cpus - decode_cpus) / actors * 100) / 100)
    return Pools(
        gpu_actors=actors,
        max_actors=max(actors, ceiling),
        actor_cpus=actor_cpus,
        actor_gpus=float(fraction),
        decode_tasks=max(1, int((cpus - actors * actor_cpus) / decode_cpus + 1e-9)),
        decode_cpus=min(decode_cpus, cpus),
        device="cuda",
    )


def _together(pools: Pools, room: float) -> Pools:
    each = pools.actor_cpus + pools.decode_tasks * pools.decode_cpus / pools.gpu_actors
    return replace(pools, actor_cpus=math.floor(min(each, room) * 10_000) / 10_000, decode_cpus=0.0)


def _on_cpus(
    now: float, later: float, node_cpus: float | None, actor_cpus: float | None, decode_cpus: float
) -> tuple[Pools, float]:
    """The pools, and each actor's share of the smallest node."""
    if now < 2 and actor_cpus is None:
        half = now / 2
        halved = Pools(
            gpu_actors=1,
            max_actors=1,
            actor_cpus=half,
            actor_gpus=0.0,
            decode_tasks=1,
            decode_cpus=min(decode_cpus, half),
            device="cpu",
        )
        return halved, now
    # node by node, so that every actor fits one and each node keeps a core or more for decoding: when a node is lost,
    # its actor can start again elsewhere without taking the last core that decodes
    node = min(node_cpus or now, now)
    share = max(decode_cpus, math.floor(node * CPU_DECODE_SHARE))
    per_actor = actor_cpus
    if per_actor is None:
        each = math.ceil((node - share) / CPU_ACTOR_THREADS) or 1
        per_actor = max(1.0, float(math.floor((node - share) / each)))
    per_node = max(1, int((node - share) / per_actor + 1e-9))

    def actors_on(cpus: float) -> int:
        nodes = max(1, int(cpus / node + 1e-9))
        return max(1, min(nodes * per_node, int((cpus - decode_cpus) / per_actor + 1e-9)))

    actors = actors_on(now)
    ceiling = max(actors, actors_on(later))
    left = now - actors * per_actor
    pools = Pools(
        gpu_actors=actors,
        max_actors=ceiling,
        actor_cpus=per_actor,
        actor_gpus=0.0,
        decode_tasks=max(1, int(max(left, later * CPU_DECODE_SHARE if later > now else 0) / decode_cpus + 1e-9)),
        decode_cpus=decode_cpus,
        device="cpu",
    )
    return pools, node / per_node
