"""The VideoMAE V2 encoder: 16 frames in, one feature vector out (Wang et al., CVPR 2023).

Parameter names are the published ones, so that published checkpoints load as they are (see `pthnet.published`).
Shapes: B windows, N tokens, D = dim, h = heads.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pthnet.errors import ModelError

TUBELET = 2  # frames per token


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig:
    """Sizes of an encoder; `VideoMAEConfig.named` has the published ones.

    Attributes
    ----------
    image_size, patch_size : int
        Side of the input and of a patch, in pixels.
    frames : int
        Frames in a window; two make a token.
    dim, depth, heads : int
        Width (= length of the feature), blocks, attention heads.
    mlp_dim : int
        Hidden width of a block's MLP; 0 means 4 x dim.
    num_classes : int
        Outputs of the classification head; 0 leaves the head out, as features need none.
    """

    image_size: int = 224
    patch_size: int = 16
    frames: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp_dim: int = 0
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.mlp_dim == 0:
            object.__setattr__(self, "mlp_dim", 4 * self.dim)
        if self.dim % self.heads:
            raise ModelError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ModelError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.frames % TUBELET:
            raise ModelError(f"frames must be a multiple of {TUBELET}; found {self.frames}")

    @classmethod
    def named(cls, name: str, **changes: Any) -> "VideoMAEConfig":
        """A published size: "small", "base", "large", "huge" or "giant"; or "tiny".

        "tiny" (64 x 64 pixels, 192-d, 4 blocks) is ours, for demonstrations on a laptop; there are no published weights
        of it. `changes` replace single fields.
        """
        if name not in _NAMED:
            raise ModelError(f"no VideoMAE is named {name!r}; known: {', '.join(_NAMED)}")
        return replace(_NAMED[name], **changes)

    @property
    def num_tokens(self) -> int:
        """Tokens of one window."""
        return (self.frames // TUBELET) * (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Numbers in one tubelet patch."""
        return 3 * TUBELET * self.patch_size**2


_NAMED = {
    "tiny": VideoMAEConfig(image_size=64, dim=192, depth=4, heads=3),
    "small": VideoMAEConfig(),
    "base": VideoMAEConfig(dim=768, depth=12, heads=12),
    "large": VideoMAEConfig(dim=1024, depth=24, heads=16),
    "huge": VideoMAEConfig(dim=1280, depth=32, heads=16),
    "giant": VideoMAEConfig(patch_size=14, dim=1408, depth=40, heads=16, mlp_dim=1408 * 48 // 11),
}


class VideoMAE(nn.Module):
    """Pre-norm vision transformer over tubelets; the feature is LN(mean over tokens).

    Call it with pixels [B, 3, 16, S, S] (see `pthnet.pixels`) for features [B, dim]. Weights may be bfloat16: attention
    and matrix products then run in bfloat16, while the residual stream, layer norms and the mean over tokens stay in
    float32.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.fc_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, config.num_classes) if config.num_classes else None
        self.register_buffer("positions", sinusoid_table(config.num_tokens, config.dim), persistent=False)
        self.positions: Tensor

    @classmethod
    def seeded(cls, config: VideoMAEConfig, seed: int) -> "VideoMAE":
        """Random weights (PyTorch's default initialisation) that are the same on every machine for the same seed."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            return cls(config)

    def forward(self, pixels: Tensor, step: "Step | None" = None) -> Tensor:
        """Features of windows.

        Parameters
        ----------
        pixels : [B, 3, 16, S, S]
        step
            Calls a block; `torch.compile(run_block)` for compiled ones. The blocks are alike, so that one is compiled
            and serves for all: seconds where the whole encoder would take minutes.

        Returns
        -------
        float32 [B, dim]
        """
        step = step or run_block
        added = self.patch_embed(pixels)  # [B, N, D]
        x = self.positions.float().expand(len(added), -1, -1).contiguous()
        for block in cast(Iterable[Block], self.blocks):
            x, added = step(block, x, added)
        return _norm(self.fc_norm, (x + added).mean(dim=1), torch.float32)

    def logits(self, pixels: Tensor) -> Tensor:
        """Outputs [B, num_classes] of the classification head, for encoders that keep one."""
        if self.head is None:
            raise ModelError("this encoder has no classification head; build it with num_classes > 0")
        features = self(pixels)
        return F.linear(features.to(self.head.weight.dtype), self.head.weight, self.head.bias)


class PatchEmbed(nn.Module):
    """Tubelets of 2 x p x p pixels to tokens, in (time, row, column) order."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        kernel = (TUBELET, config.patch_size, config.patch_size)
        # Holds the weights in the published shape; applied as one matrix product, since kernel = stride.
        self.proj = nn.Conv3d(3, config.dim, kernel_size=kernel, stride=kernel)

    def forward(self, pixels: Tensor) -> Tensor:
        c = self.config
        batch = pixels.shape[0]
        if pixels.shape[1:] != (3, c.frames, c.image_size, c.image_size):
            raise ModelError(
                f"windows must be [B, 3, {c.frames}, {c.image_size}, {c.image_size}]; found {list(pixels.shape)}"
            )
        grid, p = c.image_size // c.patch_size, c.patch_size
        patches = pixels.view(batch, 3, c.frames // TUBELET, TUBELET, grid, p, grid, p)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, c.num_tokens, c.patch_dim)  # [B, N, 3*2*p*p]
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)).

    The last addition is left to the next block, where it is one pass over memory with the norm that follows: `forward`
    takes x and what is still to be added to it, both [B, N, D], and returns the same of its own.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = Mlp(config.dim, config.mlp_dim)

    def forward(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        compute = self.attn.proj.weight.dtype
        x = x + added
        x = x + self.attn(_norm(self.norm1, x, compute))
        return x, self.mlp(_norm(self.norm2, x, compute))


Step = Callable[[Block, Tensor, Tensor], tuple[Tensor, Tensor]]


def run_block(block: Block, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """`block(x, added)`: what `torch.compile` takes to compile one block for all."""
    return block(x, added)


class Attention(nn.Module):
    """Multi-head self-attention with learned query and value biases and none for the keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(batch, tokens, 3, self.heads, dim // self.heads)
        if qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu" and not torch.is_grad_enabled():
            return self.proj(_attend_head_by_head(qkv).flatten(2))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, h, N, D/h]
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def sinusoid_table(num_tokens: int, dim: int) -> Tensor:
    """Fixed positions [num_tokens, dim]: sine on even, cosine on odd channels, angle ``pos / 10000^(2*(j//2)/dim)``."""
    channel = np.arange(dim)
    angle = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (channel // 2) / dim)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table.astype(np.float32))


def flops(config: VideoMAEConfig) -> int:
    """Floating-point operations of one window's features, matrix products only, a multiply-add counted as two."""
    n, d = config.num_tokens, config.dim
    embed = 2 * n * config.patch_dim * d
    attention = 2 * n * d * 4 * d + 2 * (2 * n * n * d)
    mlp = 2 * (2 * n * d * config.mlp_dim)
    return embed + config.depth * (attention + mlp)


def parameter_count(config: VideoMAEConfig) -> int:
    """Parameters of an encoder, without building it in memory."""
    with torch.device("meta"):
        return sum(math.prod(p.shape) for p in VideoMAE(config).parameters())


def _attend_head_by_head(qkv: Tensor) -> Tensor:
    """Attention of qkv [B, N, 3, h, D/h] -> [B, N, h, D/h], one head's scores [N, N] at a time.

    PyTorch's fused attention on the CPU takes 2.5 times as long in bfloat16 as these plain products, which reach the
    processor's bfloat16 units. The scores of one head, reused by the next, stay in the cache.
    """
    batch, tokens, _, heads, width = qkv.shape
    query = qkv[:, :, 0] * width**-0.5
    attended = torch.empty_like(query)
    scores, weights = qkv.new_empty(2, tokens, tokens).unbind(0)
    for window in range(batch):
        for head in range(heads):
            key, value = qkv[window, :, 1, head], qkv[window, :, 2, head]
            torch.mm(query[window, :, head], key.T, out=scores)
            torch.softmax(scores, -1, out=weights)
            attended[window, :, head] = weights @ value
    return attended


def _norm(layer: nn.LayerNorm, x: Tensor, out: torch.dtype) -> Tensor:
    # Statistics in float32 whatever the weights' type: over 40 blocks a bfloat16 residual loses what the blocks add.
    weight, bias = layer.weight.float(), layer.bias.float()
    return F.layer_norm(x.float(), layer.normalized_shape, weight, bias, layer.eps).to(out)
