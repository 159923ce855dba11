"""Which windows of a clip fill the slots of a level, for one clip on the host or for a whole batch on its device."""

import numpy as np
import torch
from torch import Tensor

NOISE = 0.0005


def sample_slots(num_windows: int, slots: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Choose the windows that fill a level's slots.

    With fewer windows than slots all are taken, in order. Otherwise the windows are cut into `slots` stretches, stretch
    i from round(n/N * i) to round(n/N * (i+1)), halves rounded to even: evaluation takes the middle, training a uniform
    draw.

    Parameters
    ----------
    num_windows, slots : int
        Windows the clip has at this level, slots to fill; both at least 1.
    generator : numpy Generator, optional
        Draws the training choice; None is the deterministic evaluation choice.

    Returns
    -------
    int64 array [min(num_windows, slots)], strictly increasing.

    Raises
    ------
    ValueError
        No windows or no slots.
    """
    if num_windows < 1 or slots < 1:
        raise ValueError(
            f"sampling needs at least one window and one slot, got {num_windows} windows for {slots} slots"
        )
    if num_windows < slots:
        return np.arange(num_windows, dtype=np.int64)
    edges = np.round(num_windows / slots * np.arange(slots + 1)).astype(np.int64)
    if generator is None:
        return edges[:-1] + int(num_windows / slots / 2)
    return generator.integers(edges[:-1], edges[1:])


def sample_slots_batch(
    num_windows: Tensor, slots: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`sample_slots` for every clip of a batch, on the tensor's device and without waiting for it.

    Parameters
    ----------
    num_windows : int64 Tensor [B]
        Windows of each clip, at least 1 and at most 1e6.
    slots : int
    generator : torch.Generator, optional
        On the same device; None is the evaluation choice.

    Returns
    -------
    index : int64 Tensor [B, slots]
        Position among the clip's windows; 0 where there is none.
    mask : bool Tensor [B, slots]
        True on real windows.
    """
    n = num_windows[:, None]
    slot = torch.arange(slots + 1, device=n.device)
    # float64, as the published sampler: the half-way cases then fall as Python's round lets them fall
    stretch = n.double() / slots
    edges = torch.round(stretch * slot).long()
    start, width = edges[:, :-1], edges.diff(dim=1)
    if generator is None:
        offset = (stretch / 2).long().expand_as(start)
    else:
        draw = torch.rand(start.shape, device=n.device, generator=generator, dtype=torch.float64)
        offset = (draw * width).long()
    slot, few = slot[None, :-1], n < slots
    mask = (slot < n) | ~few
    return torch.where(few, slot.expand_as(start), start + offset) * mask, mask


def fill_slots(
    features: Tensor, window: Tensor, mask: Tensor, *, noise: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Gather window features into slots, zero where there is no window.

    Parameters
    ----------
    features : Tensor [W, D]
        Window features of all clips, one after the other.
    window : int64 Tensor [B, T]
        Row of `features` in each slot, see `level_windows`; any valid row where the mask is False.
    mask : bool Tensor [B, T]
    noise : float
        Standard deviation of what is added to every slot, padding included (training: `NOISE`).
    generator : torch.Generator, optional
        Draws the noise, on the features' device.

    Returns
    -------
    x : Tensor [B, D, T], a transposed view of a contiguous [B, T, D]
    mask : bool Tensor [B, T], as given
    """
    x = features[window] * mask[..., None].to(features.dtype)
    if noise:
        x = x + noise * torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    return x.transpose(1, 2), mask


def level_windows(
    clips: Tensor,
    first: Tensor,
    positions: Tensor,
    offsets: Tensor,
    slots: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a level for a batch of clips: which rows of the flat features go into its slots.

    Parameters
    ----------
    clips : int64 Tensor [B]
        Clips of the batch.
    first : int64 Tensor [N or N + 1]
        Row of each clip's first window in the flat features.
    positions : int Tensor [P]
        The level's windows as positions within their clip, clips one after the other.
    offsets : int64 Tensor [N + 1]
        Where each clip's stretch of `positions` begins.
    slots : int
    generator : torch.Generator, optional
        As in `sample_slots_batch`.

    Returns
    -------
    window : int64 Tensor [B, slots], mask : bool Tensor [B, slots]
        Input of `fill_slots`.
    """
    begin = offsets[clips]
    index, mask = sample_slots_batch(offsets[clips + 1] - begin, slots, generator)
    return first[clips][:, None] + positions[begin[:, None] + index].long(), mask
