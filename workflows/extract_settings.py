"""How an extraction runs, and the device and threads that means on the cluster at hand."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cluster.resizing import Patience

if TYPE_CHECKING:
    from cluster.pools import Pools


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an extraction runs; what it computes is the Extractor's.

    Attributes
    ----------
    max_attempts
        Times a clip that fails is tried before it stays in quarantine, over all runs.
    retry_quarantined
        Try every quarantined clip once more.
    decode_timeout_s
        Seconds one segment may take to decode before its decoder is killed.
    segment_frames
        Longer clips are cut into segments of this many frames.
    shard_bytes, commit_every_s
        A shard is written, and what is written committed, when either is reached.
    batch_clips
        Segments in one batch of the forward stage.
    patience
        How long the cluster must have been smaller, or larger, before the pools are sized again.
    """

    max_attempts: int = 1
    retry_quarantined: bool = False
    decode_timeout_s: float = 120.0
    segment_frames: int = 512
    shard_bytes: int = 64 << 20
    commit_every_s: float = 60.0
    batch_clips: int = 16
    micro_batch: int | None = None
    max_cpus: float | None = None
    max_gpus: float | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    decode_on: str | None = None
    forward_on: str | None = None
    measure: bool = True
    patience: Patience = field(default_factory=Patience)


def forward_device(device: str, max_gpus: float | None, address: str | None) -> str:
    """Where the forward pass will run, asked of the cluster only where there is one."""
    if device != "auto":
        return device
    if max_gpus == 0:
        return "cpu"
    if address or os.environ.get("RAY_ADDRESS"):
        from cluster.connect import connect

        return "cuda" if connect(address).get("GPU", 0) else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pools_now(settings: Settings) -> "Pools":
    """The pools of this run on the cluster as it is."""
    import ray

    from cluster.connect import smallest_node
    from cluster.pools import pool_sizes

    return pool_sizes(
        ray.cluster_resources(),
        settings.max_cpus,
        settings.max_gpus,
        device=settings.device,
        node_cpus=smallest_node(),
        together=settings.decode_on is None and settings.forward_on is None,
    )


def forward_threads(resources: dict[str, Any], pools: "Pools") -> int:
    """Threads of a forward actor on CPU: decoding is light, so the actors share all cores of the cluster."""
    return max(1, int(resources.get("CPU", 1)) // pools.gpu_actors)
