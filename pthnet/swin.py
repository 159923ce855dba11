"""Swin transformer (Liu et al., ICCV 2021) as CFC-SP uses it: Swin-S without the final layer norm, timm's names."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pthnet.errors import ModelError

# B batch, H W grid of tokens, C channels, M window side, N = M*M tokens of a window, D channels of a head


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Sizes of a Swin transformer; the defaults are Swin-S at 224 pixels.

    Parameters
    ----------
    num_classes
        Outputs.
    image_size, patch_size
        Square input and patch, pixels.
    window
        Side of the attention windows, tokens. A stage whose grid is smaller attends over its whole grid.
    dim, depths, heads
        Channels of the first stage (they double at each further one), blocks and attention heads of the stages.
    drop_path
        Stochastic depth of the last block; it grows linearly from 0. 0.3 is Swin-S's own; CFC-SP states none.
    final_norm
        Layer norm before the mean over tokens. CFC-SP leaves it out.
    """

    num_classes: int = 8
    image_size: int = 224
    patch_size: int = 4
    window: int = 7
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: int = 4
    drop_path: float = 0.3
    final_norm: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise ModelError(f"depths {self.depths} and heads {self.heads} must name equally many stages")
        if self.image_size % (self.patch_size * 2 ** (len(self.depths) - 1)):
            raise ModelError(
                f"image_size {self.image_size} must be a multiple of {self.patch_size * 2 ** (len(self.depths) - 1)}: "
                f"the grid of {self.patch_size}-pixel patches is halved {len(self.depths) - 1} times"
            )
        for stage, (grid, heads) in enumerate(zip(self.grids, self.heads, strict=True)):
            if grid > self.window and grid % self.window:
                raise ModelError(
                    f"stage {stage} has a grid of {grid} x {grid} tokens, which windows of {self.window} do not tile; "
                    f"choose image_size so that every grid is below or a multiple of {self.window}"
                )
            if (self.dim * 2**stage) % heads:
                raise ModelError(f"stage {stage}: {self.dim * 2**stage} channels do not split into {heads} heads")

    @property
    def grids(self) -> tuple[int, ...]:
        """Tokens on a side at every stage."""
        return tuple(self.image_size // self.patch_size // 2**stage for stage in range(len(self.depths)))

    @property
    def feature_dim(self) -> int:
        """Length of the pooled feature."""
        return self.dim * 2 ** (len(self.depths) - 1)

    def count_parameters(self) -> int:
        """Parameters by formula; what the model holds is checked against it.

        Per block of C channels and h heads: 12 C^2 + 13 C + (2M-1)^2 h at mlp_ratio 4; per merging: 8 C^2 + 8 C.
        """
        total = 3 * self.patch_size**2 * self.dim + 3 * self.dim  # projection with bias, its norm
        for stage, (depth, heads, grid) in enumerate(zip(self.depths, self.heads, self.grids, strict=True)):
            c, m, r = self.dim * 2**stage, min(self.window, grid), self.mlp_ratio
            block = (4 + 2 * r) * c * c + (9 + r) * c + (2 * m - 1) ** 2 * heads
            total += depth * block + ((8 * c * c + 8 * c) if stage + 1 < len(self.depths) else 0)
        return total + (2 * self.feature_dim if self.final_norm else 0) + (self.feature_dim + 1) * self.num_classes


class Swin(nn.Module):
    """Image [B, 3, S, S] -> logits [B, num_classes].

    Swin-S without the final norm holds 48,841,874 parameters with 8 classes, 48,839,567 with 5, 48,838,798 with 4.

    Parameters
    ----------
    config
        Sizes; None takes Swin-S.
    """

    def __init__(self, config: SwinConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwinConfig()
        self.patch_embed = _PatchEmbed(config.patch_size, config.dim)
        blocks = sum(config.depths)
        drops = [config.drop_path * block / max(blocks - 1, 1) for block in range(blocks)]
        stages: list[nn.Module] = []
        for index, grid in enumerate(config.grids):
            stage_drops = drops[sum(config.depths[:index]) : sum(config.depths[: index + 1])]
            stages.append(_Stage(config, index, grid, stage_drops))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(config.feature_dim) if config.final_norm else None
        self.head = nn.ModuleDict({"fc": nn.Linear(config.feature_dim, config.num_classes)})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, images: Tensor) -> Tensor:
        """Pooled feature [B, D] of images [B, 3, S, S]."""
        size = self.config.image_size
        if tuple(images.shape[-2:]) != (size, size):
            raise ModelError(
                f"this Swin was built for {size} x {size} pixels, found {tuple(images.shape[-2:])}; resize the images "
                "or build it with another image_size"
            )
        x = self.patch_embed(images)  # [B, H, W, C]
        for stage in self.layers:
            x = stage(x)
        if self.norm is not None:
            x = self.norm(x)
        return x.mean(dim=(1, 2))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] of pooled features [B, D]."""
        return self.head["fc"](features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class _Merge(nn.Module):
    """2 x 2 neighbouring tokens -> one of twice the channels; stands at the entry of every stage but the first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        # the order of the four in the published weights: column of the pair outside, row inside
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class _Stage(nn.Module):
    def __init__(self, config: SwinConfig, index: int, grid: int, drops: list[float]) -> None:
        super().__init__()
        dim = config.dim * 2**index
        self.downsample = _Merge(dim // 2) if index else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                _Block(dim, config.heads[index], grid, config.window, position % 2 == 1, config.mlp_ratio, drop)
                for position, drop in enumerate(drops)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _Block(nn.Module):
    """Attention inside windows, every second block's windows shifted by half a side, then a perceptron."""

    attn_mask: Tensor | None

    def __init__(self, dim: int, heads: int, grid: int, window: int, shifted: bool, ratio: int, drop: float) -> None:
        super().__init__()
        self.window = min(window, grid)
        # one window covers the whole grid: nothing to shift
        self.shift = self.window // 2 if shifted and grid > window else 0
        self.drop = drop
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _WindowAttention(dim, heads, self.window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim, dim * ratio)
        mask = _shift_mask(grid, self.window, self.shift) if self.shift else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self._attend(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        m = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = x.view(b, h // m, m, w // m, m, c).transpose(2, 3).reshape(b, -1, m * m, c)  # [B, windows, N, C]
        x = self.attn(x, self.attn_mask)
        x = x.view(b, h // m, w // m, m, m, c).transpose(2, 3).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.drop or not self.training:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) >= self.drop
        return branch * (kept.to(branch.dtype) / (1 - self.drop))


class _WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("relative_position_index", _relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, windows, n, c = x.shape
        qkv = self.qkv(x).view(b * windows, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B*windows, heads, N, D]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(n, n, self.heads).permute(2, 0, 1)[None]  # [1, heads, N, N]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(b, 1, 1, 1)  # [B*windows, heads, N, N]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(b, windows, n, c))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def _relative_positions(window: int) -> Tensor:
    """Row of the bias table for each (query, key) of a window: [N, N] int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()])  # [2, N]
    apart = place[:, :, None] - place[:, None, :] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]


def _shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """-100 between tokens that the cyclic shift brought into one window from opposite edges: [windows, N, N]."""
    edge = torch.arange(grid)
    band = (edge >= grid - window).long() + (edge >= grid - shift).long()
    region = band[:, None] * 3 + band[None, :]
    region = region.view(grid // window, window, grid // window, window).transpose(1, 2).reshape(-1, window * window)
    return torch.where(region[:, :, None] != region[:, None, :], -100.0, 0.0)
