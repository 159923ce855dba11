"""Logits of clips at the level that decides, and what a fused score is made of."""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from pthnet.errors import ModelError
from pthnet.matmul import exact_float32
from pthnet.metrics import scores
from tasks.sampling import DeviceTable, Shard


@torch.no_grad()
def logits_of(
    model: nn.Module,
    table: DeviceTable,
    rows: np.ndarray,
    *,
    level: str = "high",
    batch: int = 128,
    shard: Shard | None = None,
    precision: str = "fp32",
    with_features: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Evaluate clips: middle windows of the slots, no noise, one level. fp32 on a GPU is not TF32.

    Parameters
    ----------
    model : PTHNet
    table : DeviceTable
    rows : int64 [n]
    level : str
        "high" in the published protocol; the finest level the model was trained with otherwise.
    shard : Shard, optional
        Compute only this worker's part and gather the others' (every worker must call).
    with_features : bool
        Also return the pooled features.

    Returns
    -------
    logits float32 [n, classes] and features float32 [n, dim] or None, on the CPU.
    """
    shard = shard or Shard()
    mine = rows[shard.slice(len(rows))]
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(mine), batch):
        chosen = torch.from_numpy(mine[start : start + batch]).to(table.device)
        reduced = torch.autocast(table.device.type, torch.bfloat16, enabled=precision == "bf16")
        with exact_float32(table.device), reduced:
            logits, features = model(table.pyramid(chosen, (level,)), with_features=True)
        parts.append(
            torch.cat([logits[level].float(), features[level].float()], 1) if with_features else logits[level].float()
        )
    model.train(was_training)
    width = model.config.num_classes + (model.config.dim if with_features else 0)  # type: ignore[union-attr, operator]
    local = torch.cat(parts) if parts else torch.zeros(0, width, device=table.device)  # type: ignore[arg-type, call-overload]
    whole = _gather(local, len(rows), shard).cpu()
    classes: int = model.config.num_classes  # type: ignore[union-attr, assignment]
    return whole[:, :classes], (whole[:, classes:] if with_features else None)


def _gather(local: Tensor, count: int, shard: Shard) -> Tensor:
    """All workers' rows in order; shards differ by one row at most, so they are padded to the longest."""
    if shard.world == 1:
        return local
    longest = -(-count // shard.world)
    padded = local.new_zeros(longest, local.shape[1])
    padded[: len(local)] = local
    received = [torch.empty_like(padded) for _ in range(shard.world)]
    torch.distributed.all_gather(received, padded)
    lengths = [Shard(rank, shard.world).slice(count) for rank in range(shard.world)]
    return torch.cat([part[: length.stop - length.start] for part, length in zip(received, lengths, strict=True)])


def fuse(forward: np.ndarray | None, reverse: np.ndarray | None, mu: float) -> np.ndarray:
    """mu * forward + (1 - mu) * reverse, [n, classes]; a direction that was not trained leaves the other alone."""
    if forward is None or reverse is None:
        only = forward if forward is not None else reverse
        if only is None:
            raise ModelError("nothing to fuse: train at least one direction")
        return only
    return (mu * forward + (1 - mu) * reverse).astype(np.float32)


def choose_mu(
    forward: np.ndarray, reverse: np.ndarray, target: np.ndarray, num_classes: int, published: float = 0.7
) -> float:
    """The weight in {0, 0.05, ..., 1} with the best UAR on the clips; of equals the one nearest to the published."""
    grid = np.round(np.linspace(0, 1, 21), 2)
    reached = [scores(target, fuse(forward, reverse, float(mu)).argmax(1), num_classes).uar for mu in grid]
    return float(max(zip(reached, -np.abs(grid - published), grid, strict=True))[2])


def data_digest(clip_ids: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of evaluation data, whatever its order: scores compare only on the same clips and labels."""
    pairs = sorted(zip(clip_ids.tolist(), labels.tolist(), strict=True))
    return hashlib.sha256("".join(f"{clip}\t{label}\n" for clip, label in pairs).encode()).hexdigest()
