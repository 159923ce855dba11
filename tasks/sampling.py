"""Batches made on the device: which clips, which windows, padded and noised, without a file read or a loader process.

Every random number of a step is drawn for the whole (global) batch from a generator seeded by (seed, epoch), and each
worker keeps the rows of its shard. So the worker count changes nothing, and an epoch can be repeated after a crash.

Shapes: B clips of the shard, G clips of the global batch, D feature size, T slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pthnet.slots import level_windows
from pthnet.windows import SLOTS
from tasks.feature_set import FeatureSet

Pyramid = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shard:
    """Which of how many equal parts of every batch a worker computes."""

    rank: int = 0
    world: int = 1

    def slice(self, count: int) -> slice:
        """Its rows of a batch of `count`; contiguous, sizes differ by one at most, possibly none."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


def seed_generator(generator: torch.Generator, *key: int) -> None:
    """Begin a stream that depends on all numbers of the key."""
    state = np.random.SeedSequence([number % 2**32 for number in key]).generate_state(2, np.uint32)
    generator.manual_seed((int(state[0]) << 31) ^ int(state[1]))


def generator_for(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on the device whose stream depends on all numbers of the key."""
    generator = torch.Generator(device)
    seed_generator(generator, *key)
    return generator


def epoch_order(rows: np.ndarray, labels: np.ndarray, balanced: bool, *key: int) -> np.ndarray:
    """The clips of an epoch in the order they are met.

    Parameters
    ----------
    rows : int64 [n]
        Clips of the training split.
    labels : int64 [n]
        Their classes.
    balanced : bool
        Draw n clips with replacement, every class equally often in expectation, instead of each clip once.
    key : int
        What seeds the order.
    """
    rng = np.random.default_rng([number % 2**32 for number in key])
    if not balanced:
        return rows[rng.permutation(len(rows))]
    counts = np.bincount(labels)
    weight = 1.0 / counts[labels]
    return rows[rng.choice(len(rows), size=len(rows), p=weight / weight.sum())]


class DeviceTable:
    """A FeatureSet's arrays as tensors, on the device when they fit, else gathered on the host and copied per batch.

    Parameters
    ----------
    features : FeatureSet
    device : torch.device
    reserve : float
        Part of the device's memory that features may take.
    share : float
        Part of the device that is this process's: trainings that start beside each other all find the memory free.
    """

    def __init__(self, features: FeatureSet, device: torch.device, *, reserve: float = 0.6, share: float = 1.0) -> None:
        self.device = device
        self.resident = device.type == "cpu" or features.features.nbytes < room_for_features(
            *torch.cuda.mem_get_info(device), reserve=reserve, share=share
        )
        home = device if self.resident else torch.device("cpu")
        self.windows = _tensor(features.features).to(home)
        self.labels = _tensor(features.labels).to(device)
        self.offsets = _tensor(features.offsets[:-1]).to(device)
        self.positions = {level: _tensor(array).to(device) for level, array in features.positions.items()}
        self.level_offsets = {level: _tensor(array).to(device) for level, array in features.position_offsets.items()}

    def __len__(self) -> int:
        return len(self.labels)

    def pyramid(
        self,
        rows: Tensor,
        levels: Sequence[str],
        *,
        generator: torch.Generator | None = None,
        noise: float = 0.0,
        keep: slice = slice(None),
    ) -> Pyramid:
        """The slots of a batch of clips, levels as the model takes them: x [B, D, T], mask [B, T].

        Parameters
        ----------
        rows : int64 [G]
            Clips of the global batch, on the device.
        generator : torch.Generator, optional
            Draws windows and noise as in training; None takes the middle window of every slot and adds nothing.
        noise : float
            Deviation of the noise added to every slot, padding included (as published).
        keep : slice
            Rows of the batch to return.
        """
        made = {}
        for level in levels:
            window, mask = level_windows(
                rows, self.offsets, self.positions[level], self.level_offsets[level], SLOTS[level], generator=generator
            )
            window, mask = window[keep], mask[keep]
            x = self._gather(window) * mask[..., None]  # [B, T, D]
            if generator is not None and noise:
                drawn = torch.randn((len(rows), *x.shape[1:]), generator=generator, device=self.device)
                x = x.add_(drawn[keep], alpha=noise)
            made[level] = (x.transpose(1, 2), mask)
        return made

    def _gather(self, index: Tensor) -> Tensor:
        if self.resident:
            return self.windows[index]
        return self.windows[index.cpu()].pin_memory().to(self.device, non_blocking=True)


def room_for_features(free: int, total: int, *, reserve: float, share: float) -> float:
    """Bytes that features may take of a device with `free` of `total` bytes, of which `share` belongs to the caller."""
    return reserve * min(free, share * total)


def _tensor(array: np.ndarray) -> Tensor:
    """The array's memory as a tensor, read-only or not; nothing here writes into it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))
