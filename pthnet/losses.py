"""Training losses: the pyramid loss of PTH-Net and the expression-clustering loss of EC-STFL."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pthnet.errors import ModelError
from pthnet.windows import LEVELS


def pyramid_loss(
    logits: Mapping[str, Tensor], target: Tensor, *, class_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy at the finest level, and the coarser levels drawn towards its prediction.

    total = CE(finest, y) + sum over coarser levels of KL(softmax(stop_gradient(finest)) || softmax(level)), batchmean.
    Li et al., PTH-Net, IEEE TIP 2024; there all three levels are present.

    Parameters
    ----------
    logits : mapping of level to Tensor [B, classes]
        Any non-empty subset of high, middle, low. The finest one present carries the cross entropy.
    target : int64 Tensor [B]
    class_weight : Tensor [classes], optional
        Weights of the cross entropy.
    label_smoothing : float
        Of the cross entropy.

    Returns
    -------
    total : Tensor, scalar
    parts : dict of str to Tensor
        Detached scalars "ce" and, for the coarser levels present, "kl_middle" and "kl_low".
    """
    levels = [level for level in LEVELS if level in logits]
    if not levels:
        raise ModelError(
            f"the pyramid loss needs logits of at least one of {', '.join(LEVELS)}; got {sorted(logits) or 'none'}"
        )
    finest = _at_least_float32(logits[levels[0]])
    weight = None if class_weight is None else class_weight.to(finest)
    total = F.cross_entropy(finest, target, weight=weight, label_smoothing=label_smoothing)
    parts = {"ce": total.detach()}
    teacher = finest.detach().softmax(-1)
    for level in levels[1:]:
        divergence = F.kl_div(_at_least_float32(logits[level]).log_softmax(-1), teacher, reduction="batchmean")
        total = total + divergence
        parts[f"kl_{level}"] = divergence.detach()
    return total, parts


def ecstfl_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Pull features of one expression together, push those of others apart (Jiang et al., EC-STFL, ACM MM 2020).

    With D the pairwise L1 distances and N the batch size, L = sum_i A_i * R_i / N^2,
    A_i = sum_{same} D_ij / (count_same_i + 1e-6), the count including i itself,
    R_i = sum_{other} 1 / (D_ij + 1e-6) / (count_other_i + 1 + 1e-6).

    Parameters
    ----------
    features : Tensor [B, D]
        Pooled, not normalised.
    labels : int64 Tensor [B]

    Returns
    -------
    Tensor, scalar; zero, with zero gradients, for a batch of one sample or one class.
    """
    features = _at_least_float32(features)
    distance = torch.cdist(features, features, p=1.0)
    same = labels[:, None] == labels[None, :]
    attraction = (distance * same).sum(1) / (same.sum(1) + 1e-6)
    repulsion = ((distance + 1e-6).reciprocal() * ~same).sum(1) / ((~same).sum(1) + 1 + 1e-6)
    return (attraction * repulsion).sum() / len(labels) ** 2


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
