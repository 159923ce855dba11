"""The loss of one worker's shard of a global batch, such that the mean over workers is the batch's loss."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pthnet.losses import ecstfl_loss, pyramid_loss
from pthnet.pth_net import PTHNet
from tasks.sampling import Pyramid, Shard
from tasks.train_settings import TrainSettings


class ModelWithLoss(nn.Module):
    """What DDP wraps: a network and its loss on a shard, scaled so that the mean over workers is the batch's loss."""

    def __init__(self, model: PTHNet, settings: TrainSettings, class_weights: Tensor | None, shard: Shard) -> None:
        super().__init__()
        self.model, self.settings, self.shard = model, settings, shard
        self.class_weights = class_weights

    def forward(self, pyramid: Pyramid, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Loss to differentiate, and [total, CE, KL middle, KL low, extra, hits] as sums over this shard's clips.

        Parameters
        ----------
        pyramid, target
            The shard's clips; one clip of no weight when the shard is empty.
        count : int
            Clips in the global batch.
        """
        settings, shard = self.settings, self.shard
        mine = shard.slice(count)
        rows = mine.stop - mine.start
        wants_features = settings.loss == "ecstfl"
        with torch.autocast(target.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            answer = self.model(pyramid, with_features=wants_features)
        logits, features = answer if wants_features else (answer, None)
        logits = {level: value.float() for level, value in logits.items()}
        finest = logits[settings.level]
        total, parts = pyramid_loss(logits, target)
        if self.class_weights is not None:
            # The mean of w * CE over the batch, with weights whose mean over the training clips is 1.
            each = F.cross_entropy(finest, target, reduction="none")
            total = total + ((self.class_weights[target] - 1) * each).mean()
        loss = total * (rows * shard.world / count)
        extra = total.new_zeros(())
        if features is not None:
            extra = settings.gamma * _global_ecstfl(features[settings.level].float(), target, count, shard)
            loss = loss + extra
        with torch.no_grad():
            zero = total.new_zeros(())
            hits = (finest.argmax(1) == target).sum()
            named = [parts.get(name, zero) for name in ("ce", "kl_middle", "kl_low")]
            share = torch.stack([total, *named, zero, zero]) * rows
            share[4], share[5] = extra * rows, hits if rows else 0
            share[0] += share[4]
        return loss, share


def _global_ecstfl(features: Tensor, target: Tensor, count: int, shard: Shard) -> Tensor:
    """EC-STFL over the whole batch: pairs span workers, so features are gathered with their gradient."""
    if shard.world == 1:
        return ecstfl_loss(features, target)
    from torch.distributed.nn.functional import all_gather

    lengths = [(part := Shard(rank, shard.world).slice(count)).stop - part.start for rank in range(shard.world)]
    spare = max(lengths) - lengths[shard.rank] if lengths[shard.rank] else max(lengths) - 1
    gathered = all_gather(F.pad(features, (0, 0, 0, spare)))
    labels = [torch.empty(max(lengths), dtype=target.dtype, device=target.device) for _ in lengths]
    torch.distributed.all_gather(labels, F.pad(target, (0, spare)))
    return ecstfl_loss(
        torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)]),
        torch.cat([part[:n] for part, n in zip(labels, lengths, strict=True)]),
    )


def inverse_frequency(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class weights float32 [classes], inverse to frequency, with mean 1 over the labels; 0 for absent classes."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights.astype(np.float32)
