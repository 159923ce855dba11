"""Layers over packed time: levels joined end to end along one axis, [B, T, C], and kept apart where they must be."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REACH = 2  # of the widest kernel, 5 taps
ROWS = 32  # the number of rows that matrix products are given is a multiple of it


@dataclass(frozen=True, eq=False)
class Layout:
    """Which packed slot belongs to which level.

    levels, lengths: names and slots of the levels, in packed order. level_of [T]: position in `levels`. inside
    [5, T, 1]: 1.0 where the tap at distance -2..2 stays within its level. same [T, T]: slots of one level. starts [T]:
    the first slots of the levels.
    """

    levels: tuple[str, ...]
    lengths: tuple[int, ...]
    level_of: Tensor
    inside: Tensor
    same: Tensor
    starts: Tensor

    @staticmethod
    @lru_cache(maxsize=64)
    def of(levels: tuple[str, ...], lengths: tuple[int, ...], device: torch.device) -> "Layout":
        """Build once a combination: the tensors stay on the device and cost a training step nothing."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # else a first call under inference_mode would spoil later training
            level_of = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(lengths))
            padded = F.pad(level_of, (REACH, REACH), value=-1)
            shifted = torch.stack([padded[tap : tap + len(level_of)] for tap in range(2 * REACH + 1)])
            inside = (shifted == level_of).float()[..., None]
            same = level_of[:, None] == level_of[None, :]
            starts = inside[REACH - 1, :, 0] == 0
            return Layout(levels, lengths, level_of.to(device), inside.to(device), same.to(device), starts.to(device))

    def halved(self) -> "Layout":
        return Layout.of(self.levels, tuple(length // 2 for length in self.lengths), self.level_of.device)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over each level's slots, padding included: [B, T, ...] -> [B, L, ...]."""
        if x.device.type == "cpu":
            return torch.stack([part.mean(1) for part in x.split(self.lengths, 1)], 1)
        return _mixed(_averages(self, x.dtype), x)

    def spread(self, per_level: Tensor) -> Tensor:
        """Repeat a level's row over its slots: [B, L, ...] -> [B, T, ...]."""
        if len(self.levels) == 1:
            return per_level
        if per_level.device.type == "cpu":
            return per_level.index_select(1, self.level_of)
        return _mixed(_members(self, per_level.dtype), per_level)

    def attend(self, mask: Tensor) -> Tensor:
        """Who may look at whom, [B, 1, T, T]: the valid slots of the own level."""
        return (mask[:, None, :] & self.same)[:, None]


# On a GPU what counts is how many kernels there are, not how much each does: there sums and copies within levels are
# products with small constant matrices, one kernel in either direction.


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix [S, T] times x [B, T, ...] along its second axis, in x's own precision: [B, S, ...]."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


@lru_cache(maxsize=64)
def _members(layout: Layout, dtype: torch.dtype) -> Tensor:
    """[T, L]: 1 where a slot is of a level."""
    with torch.inference_mode(False):
        return F.one_hot(layout.level_of, len(layout.levels)).to(dtype)


@lru_cache(maxsize=64)
def _averages(layout: Layout, dtype: torch.dtype) -> Tensor:
    """[L, T]: what every slot contributes to its level's mean."""
    with torch.inference_mode(False):
        members = F.one_hot(layout.level_of, len(layout.levels)).double()
        return (members / members.sum(0)).T.to(dtype).contiguous()


@lru_cache(maxsize=64)
def _places(layout: Layout, kernels: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the taps of kernels, the levels' one after the other and that as often as there are parts, act.

    Returns
    -------
    Tensor [5 T, sum of kernels]
        1 where a tap acts at a distance of -2..2 on a slot, of its level, from one within the level.
    Tensor [T, number of kernels]
        1 where a kernel, or its bias, acts on a slot.
    """
    with torch.inference_mode(False):
        level_of, inside = layout.level_of, layout.inside[..., 0]
        columns = []
        for number, kernel in enumerate(kernels):
            there = (level_of == number % len(layout.levels)).to(inside)
            for tap in range(REACH - kernel // 2, REACH + kernel // 2 + 1):
                column = torch.zeros_like(inside)  # [5, T]
                column[tap] = inside[tap] * there
                columns.append(column.flatten())
        owners = [(level_of == number % len(layout.levels)) for number in range(len(kernels))]
        return torch.stack(columns, 1).to(dtype), torch.stack(owners, 1).to(dtype)


class _Taps(torch.autograd.Function):
    """y[b, t] = sum over taps k of weight[k, t] * x[b, t + k - K // 2], weights zero where a tap leaves its level.

    Its own backward, because autograd's for the shifted slices allocates and adds a full tensor for every tap.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        reach, length = len(weight) // 2, x.shape[1]
        y = x * weight[reach]
        for tap, (to, source) in _overlaps(reach, length):
            y[:, to].addcmul_(x[:, source], weight[tap, to])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        reach, length = len(weight) // 2, x.shape[1]
        grad_x, grad_weight = grad * weight[reach], torch.zeros_like(weight)
        torch.sum(grad * x, 0, out=grad_weight[reach])
        for tap, (to, source) in _overlaps(reach, length):
            grad_x[:, source].addcmul_(grad[:, to], weight[tap, to])
            torch.sum(grad[:, to] * x[:, source], 0, out=grad_weight[tap, to])
        return grad_x, grad_weight


def _overlaps(reach: int, length: int) -> list[tuple[int, tuple[slice, slice]]]:
    """(tap, (slots written, slots read)) for every tap but the central one."""
    found = []
    for tap in range(2 * reach + 1):
        shift = tap - reach
        if shift and abs(shift) < length:
            to = slice(max(0, -shift), length - max(0, shift))
            found.append((tap, (to, slice(to.start + shift, to.stop + shift))))
    return found


class Depthwise(nn.Module):
    """Depth-wise convolution over time, zero padded within each level. weight [K, C], bias [C]."""

    def __init__(self, dim: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.uniform_(self.weight, -1 / math.sqrt(kernel), 1 / math.sqrt(kernel))  # as nn.Conv1d: fan in = kernel

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        kernel, bias = len(self.weight), None if self.bias is None else self.bias.to(x.dtype)
        if kernel == 1:
            weight = self.weight[0].to(x.dtype)
            return x * weight if bias is None else torch.addcmul(bias, x, weight)
        side = kernel // 2
        inside = layout.inside[REACH - side : REACH + side + 1]
        y = _Taps.apply(x, (self.weight[:, None] * inside).to(x.dtype))
        return y if bias is None else y + bias


class LevelDepthwise(nn.ModuleDict):
    """One depth-wise convolution a level, kernels of their own sizes."""

    def __init__(self, dim: int, kernels: Mapping[str, int]) -> None:
        super().__init__({level: Depthwise(dim, kernel) for level, kernel in kernels.items()})

    @staticmethod
    def summed(x: Tensor, layout: Layout, *parts: "LevelDepthwise") -> Tensor:
        """Sum of the parts' outputs in one pass: convolutions of one input add up to one with summed kernels."""
        convolutions = [cast(Depthwise, part[level]) for part in parts for level in layout.levels]
        pack = _packed_by_level if x.device.type == "cpu" else _packed_at_once
        kernels, biases = pack(convolutions, layout)
        return _Taps.apply(x, kernels.to(x.dtype)) + biases.to(x.dtype)


def _packed_by_level(convolutions: Sequence[Depthwise], layout: Layout) -> tuple[Tensor, Tensor]:
    """Summed kernels [5, T, C] and biases [1, T, C] of convolutions, the levels' one after the other, part by part."""
    kernels, biases = [], []
    for level in range(len(layout.levels)):
        kernel, bias = convolutions[0].weight.new_zeros(()), convolutions[0].weight.new_zeros(())
        for convolution in convolutions[level :: len(layout.levels)]:
            side = REACH - len(convolution.weight) // 2
            kernel = kernel + F.pad(convolution.weight, (0, 0, side, side))
            bias = bias + cast(Tensor, convolution.bias)
        kernels.append(kernel)
        biases.append(bias)
    return layout.spread(torch.stack(kernels, 1)) * layout.inside, layout.spread(torch.stack(biases)[None])


def _packed_at_once(convolutions: Sequence[Depthwise], layout: Layout) -> tuple[Tensor, Tensor]:
    """The same by two products, for GPUs."""
    weights = torch.cat([convolution.weight for convolution in convolutions])  # [sum of kernels, C]
    biases = torch.stack([cast(Tensor, convolution.bias) for convolution in convolutions])
    kernels = tuple(len(convolution.weight) for convolution in convolutions)
    taps, owners = _places(layout, kernels, weights.dtype)
    with torch.autocast(weights.device.type, enabled=False):
        return (taps @ weights).unflatten(0, (2 * REACH + 1, -1)), (owners @ biases)[None]


def worth_computing(mask: Tensor, reach: int = 0) -> Tensor | None:
    """Rows of the flattened [B * T, C] that are valid, or within `reach` of a valid one; None stands for all.

    What a matrix product yields on a padded slot is masked away afterwards, and short clips make most slots padding.
    An accelerator would have to be waited for to count the rows: there all are computed. Some padded ones are added to
    make the number of rows a multiple of ROWS: oneDNN compiles, and keeps, a kernel for every shape it meets.
    """
    if mask.device.type != "cpu":
        return None
    near = (F.max_pool1d(mask.float(), 2 * reach + 1, 1, reach) > 0 if reach else mask).flatten()
    count = -(-int(near.sum()) // ROWS) * ROWS
    return near.logical_not().to(torch.uint8).argsort(stable=True)[:count]


def on_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor | None) -> Tensor:
    """Apply a row-wise function to some rows of x [B, T, C]; the others become zero."""
    if rows is None or len(rows) == x.shape[0] * x.shape[1]:
        return function(x)
    y = function(x.flatten(0, 1).index_select(0, rows))
    return y.new_zeros(x.shape[0] * x.shape[1], y.shape[-1]).index_copy(0, rows, y).unflatten(0, x.shape[:2])


class SlotConv(nn.Module):
    """Convolution of 3 taps over time without bias, zero padded within each level. weight [3, out, in].

    One matrix product gives what every slot contributes to its left neighbour, itself and its right one; the three are
    then added shifted; unlike unfolding, this copies the narrow side only.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, dim, in_dim))
        nn.init.uniform_(self.weight, -1 / math.sqrt(3 * in_dim), 1 / math.sqrt(3 * in_dim))  # as nn.Conv1d

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None) -> Tensor:
        weight = self.weight.flatten(0, 1)
        before, here, after = on_rows(lambda part: F.linear(part, weight), x, rows).unflatten(-1, (3, -1)).unbind(2)
        inside = layout.inside.to(here.dtype)
        return (
            here
            + F.pad(before[:, :-1], (0, 0, 1, 0)) * inside[REACH - 1]
            + F.pad(after[:, 1:], (0, 0, 0, 1)) * inside[REACH + 1]
        )


class PackedGroupNorm(nn.GroupNorm):
    """Group norm over (channels of a group, slots of a level), padding included, in float32 at least."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # type: ignore[override]
        wide = x.unflatten(-1, (self.num_groups, -1))  # [B, T, G, C / G]
        wide = wide.float() if x.dtype in (torch.bfloat16, torch.float16) else wide
        centred = wide - layout.spread(layout.mean(wide.mean(-1, keepdim=True)))
        variance = layout.mean(centred.square().mean(-1, keepdim=True))
        normed = centred * layout.spread(torch.rsqrt(variance + self.eps))
        return torch.addcmul(self.bias, normed.flatten(2), self.weight).to(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth on scale * x, drawn for every sample and level; scale is learnable and starts at 1e-4."""

    def __init__(self, dim: int, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.scale = nn.Parameter(torch.full((dim,), 1e-4))
        # Uniform numbers [B, L] from a trainer that splits a batch over workers: a sample meets one fate on any.
        self.draws: Tensor | None = None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x * self.scale.to(x.dtype)
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        if self.draws is not None:
            return x * layout.spread((self.draws < keep).to(x.dtype).div(keep)[..., None])
        kept = (
            torch.empty(x.shape[0], len(layout.levels), 1, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)
        )
        return x * layout.spread(kept)


def downsample_max(x: Tensor, layout: Layout) -> Tensor:
    """Max pooling, 3 wide, every second slot, within each level; masks play no part: [B, T, C] -> [B, T / 2, C]."""
    even, odd = x[:, 0::2], x[:, 1::2]
    previous = F.pad(odd[:, :-1], (0, 0, 1, 0)).masked_fill(layout.starts[0::2, None], float("-inf"))
    return torch.maximum(torch.maximum(even, odd), previous)
