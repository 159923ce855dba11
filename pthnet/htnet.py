"""HTNet (Wang et al., Neurocomputing 2024): micro-expressions from the optical flow between onset and apex.

A hierarchical transformer over a grid of face patches whose attention runs inside blocks of the grid. Module names are
those of the published files. With the published 28 x 28 input every block holds ONE token, see `HTNetConfig.attention`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pthnet.errors import ModelError

# B batch, C channels, H W grid, N tokens of a block, D channels of a head


@dataclass(frozen=True, kw_only=True)
class HTNetConfig:
    """Sizes of an HTNet; the defaults are the published ones.

    Parameters
    ----------
    image_size, patch_size
        Square input and patch, pixels. The grid is image_size / patch_size on a side and is halved twice.
    dim, heads
        Channels and attention heads of the first level; both double from level to level.
    depths
        Transformer layers of the three levels.
    num_classes
        Outputs.
    attention
        "block": the published blocks, 4 x 4, 2 x 2 and 1 x 1 of them. At 28 x 28 each holds one token, whose softmax is
        1: the attention is the linear map `W_out W_v`, computed as such (same outputs, no q and k).
        "block-full": the same function with q, k and the softmax spelled out, as published; for comparison.
        "grid": NOT the published model: every level attends over its whole grid (16, 4 and 1 tokens at 28 x 28), so
        that the first two levels really mix face parts.
    dropout
        Of the perceptrons and the attention output; published: 0.
    """

    image_size: int = 28
    patch_size: int = 7
    dim: int = 256
    heads: int = 3
    depths: tuple[int, ...] = (2, 2, 10)
    num_classes: int = 3
    attention: Literal["block", "block-full", "grid"] = "block"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ModelError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; choose one that is"
            )
        coarsest = 2 ** (len(self.depths) - 1)
        if self.grid % coarsest:
            raise ModelError(
                f"a grid of {self.grid} x {self.grid} patches cannot be halved {len(self.depths) - 1} times; "
                f"image_size / patch_size must be a multiple of {coarsest}"
            )
        if self.dim < self.heads:
            raise ModelError(f"dim {self.dim} gives {self.heads} heads no channel; dim must be at least heads")
        if self.attention not in ("block", "block-full", "grid"):
            raise ModelError(f"attention is {self.attention!r}; choose block, block-full or grid")

    @property
    def grid(self) -> int:
        """Patches on a side of the first level."""
        return self.image_size // self.patch_size

    def blocks(self, level: int) -> int:
        """Attention blocks on a side of the grid at `level`."""
        return 1 if self.attention == "grid" else 2 ** (len(self.depths) - 1 - level)

    def block_side(self, level: int) -> int:
        """Tokens on a side of one attention block at `level`; 1 means that the exact fast path applies."""
        return (self.grid >> level) // self.blocks(level)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map [B, C, H, W], each position by itself; eps 1e-5, population variance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.g + self.b


class PreNorm(nn.Module):
    """`fn(norm(x))`."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Perceptron(nn.Module):
    """1x1 convolution to four times the channels, exact GELU, and back."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(4 * dim, dim, 1), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BlockAttention(nn.Module):
    """Multi-head attention among the tokens of each block; over one token, without q and k unless `full`."""

    def __init__(self, dim: int, heads: int, dropout: float, *, block_side: int, full: bool) -> None:
        super().__init__()
        self.heads, self.block_side = heads, block_side
        self.head_dim = dim // heads  # dim 256 with 3 heads: 85, one channel is lost, as published
        self.folds = block_side == 1 and not full
        self.to_qkv = nn.Conv2d(dim, 3 * self.head_dim * heads, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(self.head_dim * heads, dim, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        if self.folds:
            return self.to_out(F.conv2d(x, self.to_qkv.weight[2 * self.head_dim * self.heads :]))
        batch, _, height, width = x.shape
        side = self.block_side
        rows, columns = height // side, width // side
        split = (batch, 3, self.heads, self.head_dim, rows, side, columns, side)
        qkv = (
            self.to_qkv(x).reshape(split).permute(1, 0, 4, 6, 2, 5, 7, 3)
        )  # [3, B, rows, columns, heads, side, side, D]
        q, k, v = qkv.reshape(
            3, batch * rows * columns, self.heads, side * side, self.head_dim
        )  # each [B', heads, N, D]
        weights = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(dim=-1)  # [B', heads, N, N]
        out = (weights @ v).reshape(batch, rows, columns, self.heads, side, side, self.head_dim)
        return self.to_out(out.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, -1, height, width))


class Level(nn.Module):
    """One level: a learned scalar per block position, then the transformer layers."""

    def __init__(self, dim: int, heads: int, depth: int, dropout: float, *, block_side: int, full: bool) -> None:
        super().__init__()
        self.block_side = block_side
        self.pos_emb = nn.Parameter(torch.randn(block_side * block_side))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(dim, BlockAttention(dim, heads, dropout, block_side=block_side, full=full)),
                    PreNorm(dim, Perceptron(dim, dropout)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.shape[-1] // self.block_side
        x = x + self.pos_emb.reshape(self.block_side, self.block_side).repeat(blocks, blocks)
        for layer in self.layers:
            attention, perceptron = cast(nn.ModuleList, layer)
            x = x + attention(x)
            x = x + perceptron(x)
        return x


class Patches(nn.Module):
    """[B, 3, S, S] -> [B, 3 p p, S/p, S/p]; a patch's vector is in the order row, column, channel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        p = self.size
        cut = images.reshape(batch, channels, height // p, p, width // p, p)
        return cut.permute(0, 3, 5, 1, 2, 4).reshape(batch, p * p * channels, height // p, width // p)


class GridMean(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class HTNet(nn.Module):
    """The network: images [B, 3, S, S] float32 (strain, v, u; 0-255) -> logits [B, num_classes].

    Raises
    ------
    ModelError
        On images of another shape than the configuration's.
    """

    def __init__(self, config: HTNetConfig) -> None:
        super().__init__()
        self.config = config
        dims = [config.dim * 2**level for level in range(len(config.depths))]
        self.to_patch_embedding = nn.Sequential(
            Patches(config.patch_size), nn.Conv2d(3 * config.patch_size**2, config.dim, 1)
        )
        self.layers = nn.ModuleList()
        for level, (dim, depth) in enumerate(zip(dims, config.depths, strict=True)):
            transformer = Level(
                dim,
                config.heads * 2**level,
                depth,
                config.dropout,
                block_side=config.block_side(level),
                full=config.attention != "block",
            )
            last = level == len(dims) - 1
            down = (
                nn.Identity()
                if last
                else nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1), ChannelNorm(2 * dim), nn.MaxPool2d(3, 2, 1))
            )
            self.layers.append(nn.ModuleList([transformer, down]))
        self.mlp_head = nn.Sequential(ChannelNorm(dims[-1]), GridMean(), nn.Linear(dims[-1], config.num_classes))

    @classmethod
    def seeded(cls, config: HTNetConfig, seed: int) -> "HTNet":
        """The model of `torch.manual_seed(seed); HTNet(config)`, to the bit; PyTorch's own generator is left alone."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(dict(model.initial_parameters(seed)), assign=True)
        return model

    def initial_parameters(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Names and CPU values of what `seeded` gives a model of these sizes, drawn one tensor at a time.

        Reads the shapes alone, so that a model on the meta device serves, and several threads may share it: drawing
        the published size takes a core 0.6 s.
        """
        draw = torch.Generator().manual_seed(seed)
        for name, part in self.named_modules():  # in the order in which PyTorch's layers draw on construction
            if isinstance(part, Level):
                yield f"{name}.pos_emb", torch.randn(part.pos_emb.shape, generator=draw)
            elif isinstance(part, ChannelNorm):
                yield f"{name}.g", torch.ones(part.g.shape)
                yield f"{name}.b", torch.zeros(part.b.shape)
            elif isinstance(part, nn.Conv2d | nn.Linear):
                weight = torch.empty(part.weight.shape)
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=draw)
                yield f"{name}.weight", weight
                if part.bias is not None:
                    bound = 1 / math.sqrt(weight[0].numel())
                    yield f"{name}.bias", torch.empty(part.bias.shape).uniform_(-bound, bound, generator=draw)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ModelError(
                f"expected images [B, 3, {size}, {size}], found {list(images.shape)}; resize them or set image_size"
            )
        x = self.to_patch_embedding(images)
        for level in self.layers:
            transformer, down = cast(nn.ModuleList, level)
            x = down(transformer(x))
        return self.mlp_head(x)
