"""PTH-Net (Li et al., IEEE TIP 2024): a pyramid of window features of one clip in, one set of logits a level out.

All levels of a batch travel as ONE tensor [B, T, C], channels last, their time axes joined end to end ("packed"): the
levels share almost every weight, so a matrix product runs once over all of them, and what must not cross from a level
into its neighbour (convolution taps, attention, means) is kept apart by a `Layout`.

Shapes: B clips, T packed slots, L levels, C channels, K kernel taps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pthnet.errors import ModelError
from pthnet.packed import (
    Depthwise,
    DropPath,
    Layout,
    LevelDepthwise,
    PackedGroupNorm,
    SlotConv,
    downsample_max,
    on_rows,
    worth_computing,
)
from pthnet.windows import LEVELS

Pyramid = Mapping[str, tuple[Tensor, Tensor]]

HEADS = 8
GROUPS = 16


@dataclass(frozen=True, kw_only=True)
class PTHNetConfig:
    """Settings of a PTH-Net; the defaults are the published ones.

    Parameters
    ----------
    in_dim : int
        Size of a window feature (1408 for VideoMAE V2 giant).
    dim, mlp_dim : int
        Channels of the network and of its feed-forward layers; `dim` is a multiple of 16.
    num_classes : int
        Number of expressions.
    drop_path : float
        Probability in [0, 1) of dropping a residual branch of a sample while training.
    downsample : {"max", "avg"}
        How time is halved between the stages.
    standardize : bool
        Subtract a mean from real slots and divide by a deviation, see `PTHNet.set_standardization`. Off in published
        weights.
    """

    in_dim: int = 1408
    dim: int = 512
    mlp_dim: int = 768
    num_classes: int = 7
    drop_path: float = 0.1
    downsample: str = "max"
    standardize: bool = False

    def __post_init__(self) -> None:
        for name in ("in_dim", "dim", "mlp_dim", "num_classes"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % GROUPS:
            raise ModelError(
                f"dim must be a multiple of {GROUPS} ({GROUPS} norm groups, {HEADS} heads), not {self.dim}; "
                f"the nearest is {max(GROUPS, round(self.dim / GROUPS) * GROUPS)}"
            )
        if not 0 <= self.drop_path < 1:
            raise ModelError(f"drop_path is a probability in [0, 1), not {self.drop_path}; the published one is 0.1")
        if self.downsample not in ("max", "avg"):
            raise ModelError(f"downsample is 'max' or 'avg', not {self.downsample!r}")


class CrossAttention(nn.Module):
    """Eight heads over the valid slots of a level; inputs are smoothed depth-wise and normalised first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name in ("query", "key", "value"):
            self.add_module(f"{name}_conv", Depthwise(dim, 3, bias=False))
            self.add_module(f"{name}_norm", nn.LayerNorm(dim))
            self.add_module(name, nn.Linear(dim, dim))
        self.proj = nn.Linear(dim, dim)

    def _heads(self, name: str, x: Tensor, valid: Tensor, rows: Tensor | None, layout: Layout) -> Tensor:
        conv, norm, linear = (self.get_submodule(part) for part in (f"{name}_conv", f"{name}_norm", name))
        return (
            on_rows(lambda part: linear(norm(part)), valid * conv(x, layout), rows)
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)
        )  # [B, heads, T, C / heads]

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        valid, attend, rows = mask[..., None].to(query.dtype), layout.attend(mask), worth_computing(mask)
        q = self._heads("query", query, valid, rows, layout)
        k = self._heads("key", memory, valid, rows, layout)
        v = self._heads(
            "value", memory, valid, rows, layout
        )  # needs no mask of its own: padded keys weigh exactly zero
        # Written out, not fused: over one key (low level, last stage) gradients are exactly zero, and T <= 28 is tiny.
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        weights = scores.float() if scores.dtype == torch.bfloat16 or scores.dtype == torch.float16 else scores
        weights = weights.masked_fill(~attend, float("-inf")).softmax(-1).to(v.dtype)
        return valid * on_rows(self.proj, (weights @ v).transpose(1, 2).flatten(2), rows)


class SSDLayer(nn.Module):
    """Scalable semantic distinction: cross attention whose query depends on the level, then a feed-forward layer.

    Two quirks of the published model are kept, as its weights were trained with them: means over time include padding,
    and the normalised input `o` is added back without its mask.
    """

    def __init__(self, config: PTHNetConfig, kernel: int, drop_path: float | None) -> None:
        super().__init__()
        dim = config.dim
        self.ln = nn.LayerNorm(dim)
        self.gn = PackedGroupNorm(GROUPS, dim)
        self.psi = Depthwise(dim, kernel)
        self.fc = Depthwise(dim, 1)
        self.convw = LevelDepthwise(dim, dict.fromkeys(LEVELS, kernel))
        self.convkw = LevelDepthwise(dim, {"high": 5, "middle": 3, "low": 1})
        self.global_fc = Depthwise(dim, 1)
        self.cross_att = CrossAttention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, config.mlp_dim), nn.GELU(), nn.Linear(config.mlp_dim, dim))
        self.drop_path_out: nn.Module | None = None if drop_path is None else DropPath(dim, drop_path)
        self.drop_path_mlp: nn.Module | None = None if drop_path is None else DropPath(dim, drop_path)

    def forward(self, x: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        o = self.ln(x)
        level_weighted = LevelDepthwise.summed(o, layout, self.convw, self.convkw)
        phi = F.relu(self.global_fc(layout.mean(o), layout))  # [B, L, C]
        memory = self.fc(o, layout) * layout.spread(phi)
        branch = self.cross_att(level_weighted * self.psi(o, layout), memory, mask, layout) + o
        if self.drop_path_out is not None:
            branch = self.drop_path_out(branch, layout)
        y = mask[..., None].to(x.dtype) * x + branch
        branch = self.mlp(self.gn(y, layout))
        if self.drop_path_mlp is not None:
            branch = self.drop_path_mlp(branch, layout)
        return y + branch


class PTHNet(nn.Module):
    """The pyramid network. See `forward`.

    Parameters
    ----------
    config : PTHNetConfig
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: PTHNetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embd = nn.ModuleList([SlotConv(config.in_dim, dim), SlotConv(dim, dim)])
        self.embd_norm = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.stem = nn.ModuleList([SSDLayer(config, 1, None), SSDLayer(config, 1, None)])
        self.branch_1 = SSDLayer(config, 3, config.drop_path)
        self.branch_2 = SSDLayer(config, 3, config.drop_path)
        self.downsample = nn.Linear(dim, dim) if config.downsample == "avg" else None
        self.head = nn.Linear(dim, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | Depthwise) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if config.standardize:
            self.register_buffer("feature_mean", torch.zeros(config.in_dim))
            self.register_buffer("feature_std", torch.ones(config.in_dim))

    def set_standardization(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics that real slots are standardised with: (x - mean) / std.

        They act on what the model is given. Padded slots pass unchanged: zeros, or the training noise, which is drawn
        on raw features and therefore divided by std on real slots only.

        Parameters
        ----------
        mean, std : Tensor [in_dim]
            Of raw window features over the training set; std above zero.
        """
        if not self.config.standardize:
            raise ModelError(
                "this PTH-Net does not standardise its input; build it with PTHNetConfig(standardize=True)"
            )
        for name, given in (("mean", mean), ("std", std)):
            if tuple(given.shape) != (self.config.in_dim,) or not bool(torch.isfinite(given).all()):
                raise ModelError(f"{name} must be finite and of shape [{self.config.in_dim}], not {list(given.shape)}")
        if not bool((std > 0).all()):
            raise ModelError("std must be above zero in every channel; clamp constant channels to 1")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def idle_parameters(self, levels: Sequence[str]) -> list[str]:
        """Names of the parameters without gradient when only `levels` run (DDP: find_unused_parameters if any)."""
        absent = tuple(f".{level}." for level in LEVELS if level not in levels)
        return [name for name, _ in self.named_parameters() if any(part in name for part in absent)]

    def features(self, pyramid: Pyramid) -> dict[str, Tensor]:
        """Pooled features [B, dim] of every level given, before the classifier."""
        x, mask, layout = self._pack(pyramid)
        if self.config.standardize:
            x = torch.where(mask[..., None], (x - self.feature_mean) / self.feature_std, x)
        valid, rows = mask[..., None].to(x.dtype), worth_computing(mask, reach=1)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            # Masked before the norm: a padded slot holds ReLU(norm's bias), not zero (quirk).
            x = F.relu(norm(valid * conv(x, layout, rows)))
            valid = valid.to(x.dtype)
        for layer in self.stem:
            x = layer(x, mask, layout)
        for layer in (self.branch_1, self.branch_2):
            x, mask, layout = self._halve(x, layout), mask[:, ::2], layout.halved()
            x = layer(x, mask, layout)
        # Divided by all T positions, not by the valid ones (quirk).
        return dict(zip(layout.levels, layout.mean(x * mask[..., None].to(x.dtype)).unbind(1), strict=True))

    def pooled(self, x: Tensor, mask: Tensor, level: str = "high") -> Tensor:
        """Pooled feature [B, dim] of one level; x [B, in_dim, T], mask [B, T]."""
        return self.features({level: (x, mask)})[level]

    def forward(self, pyramid: Pyramid, *, with_features: bool = False) -> Any:
        """Classify a batch of clips at every level given.

        Parameters
        ----------
        pyramid : mapping of level to (x, mask)
            Any non-empty subset of "high", "middle", "low". x [B, in_dim, T] float, T a multiple of 4 (published: 16,
            8, 4); mask [B, T] bool, True on real windows, at least one a clip.
        with_features : bool
            Also return the pooled features, in the same pass.

        Returns
        -------
        dict of level to logits [B, num_classes]; with `with_features` a pair: (logits, dict of level to features
        [B, dim]).

        Raises
        ------
        ModelError
            Unknown level, or shapes that do not fit.
        """
        features = self.features(pyramid)
        logits = dict(zip(features, self.head(torch.stack(list(features.values()))).unbind(0), strict=True))
        return (logits, features) if with_features else logits

    def _pack(self, pyramid: Pyramid) -> tuple[Tensor, Tensor, Layout]:
        unknown = set(pyramid) - set(LEVELS)
        if unknown or not pyramid:
            raise ModelError(f"a pyramid holds some of {', '.join(LEVELS)}; got {sorted(pyramid) or 'none'}")
        levels = tuple(level for level in LEVELS if level in pyramid)
        batch = pyramid[levels[0]][0].shape[0]
        for level in levels:
            x, mask = pyramid[level]
            wanted = f"x [{batch}, {self.config.in_dim}, T] and mask [{batch}, T] with T a multiple of 4"
            if x.ndim != 3 or x.shape[:2] != (batch, self.config.in_dim) or x.shape[2] % 4 or x.shape[2] == 0:
                raise ModelError(f"level {level}: expected {wanted}, got x {list(x.shape)}")
            if mask.shape != (batch, x.shape[2]) or mask.dtype != torch.bool:
                raise ModelError(f"level {level}: expected {wanted} of bool, got mask {list(mask.shape)} {mask.dtype}")
        x = torch.cat([pyramid[level][0].transpose(1, 2) for level in levels], dim=1)
        mask = torch.cat([pyramid[level][1] for level in levels], dim=1)
        return x, mask, Layout.of(levels, tuple(pyramid[level][0].shape[2] for level in levels), x.device)

    def _halve(self, x: Tensor, layout: Layout) -> Tensor:
        if self.downsample is None:
            return downsample_max(x, layout)
        return self.downsample((x[:, 0::2] + x[:, 1::2]) / 2)


class FusedPTHNet(nn.Module):
    """Forward and reversed PTH-Net, fused on their high-level logits: mu * forward + (1 - mu) * reverse.

    Parameters
    ----------
    forward, reverse : PTHNet
        Trained on clips in their own and in reversed frame order.
    mu : float
        Weight of the forward direction in [0, 1]; 0.7 in the paper.
    """

    mu: Tensor

    def __init__(self, forward: PTHNet, reverse: PTHNet, mu: float = 0.7) -> None:
        super().__init__()
        if not 0 <= mu <= 1:
            raise ModelError(f"mu is a weight in [0, 1], not {mu}; the published one is 0.7")
        if forward.config.num_classes != reverse.config.num_classes:
            raise ModelError(
                f"the directions know different numbers of classes: forward {forward.config.num_classes}, "
                f"reverse {reverse.config.num_classes}; train both on the same benchmark"
            )
        # Not `forward`: that name is the module's own call.
        self.forward_net, self.reverse_net = forward, reverse
        self.register_buffer("mu", torch.tensor(float(mu)))

    def forward(self, forward_pyramid: Pyramid, reverse_pyramid: Pyramid) -> Tensor:
        """Fused logits [B, num_classes] at the high level; other levels of the pyramids are not evaluated."""
        forward = self.forward_net({"high": forward_pyramid["high"]})["high"]
        reverse = self.reverse_net({"high": reverse_pyramid["high"]})["high"]
        return self.mu * forward + (1 - self.mu) * reverse


@lru_cache
def flops(config: PTHNetConfig, levels: tuple[str, ...] = LEVELS) -> int:
    """Multiply-adds for one clip as the paper counts: convolutions and linear layers, no norms, no attention products.

    The default configuration takes 0.22 G over the three levels and 0.128 G at the high level.
    """
    dim = config.dim
    dense = 4 * dim * dim + 2 * dim * config.mlp_dim
    total = 0
    for level in levels:
        slots, wide = {"high": (16, 5), "middle": (8, 3), "low": (4, 1)}[level]
        total += slots * 3 * dim * (config.in_dim + dim) + dim * config.num_classes
        for rows, kernel in ((slots, 1), (slots, 1), (slots // 2, 3), (slots // 4, 3)):
            # psi, the level's own pair, fc and the three smoothing convolutions; the global gate sees one row a level
            total += rows * (dense + dim * (2 * kernel + wide + 1 + 9)) + dim
        if config.downsample == "avg":
            total += (slots // 2 + slots // 4) * dim * dim
    return total
