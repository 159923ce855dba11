"""The published extraction procedure, written plainly, to measure ours against.

For each of three strides and two directions, for each window: read 16 frames, float32, resize, a batch of one, an eager
forward pass with explicit attention.
"""

from collections.abc import Mapping

import decord
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pthnet.videomae import VideoMAEConfig, sinusoid_table
from pthnet.windows import STRIDES, WINDOW, window_starts


class _Block(nn.Module):
    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0] * (dim // self.heads) ** -0.5, qkv[1], qkv[2]
        weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainVideoMAE(nn.Module):
    """The encoder as published: Conv3d patches, explicit attention, float32.

    Parameters
    ----------
    config
        Sizes.
    state
        Weights of a `pthnet.VideoMAE`.
    """

    def __init__(self, config: VideoMAEConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        kernel = (2, config.patch_size, config.patch_size)
        self.embed = nn.Conv3d(3, config.dim, kernel_size=kernel, stride=kernel)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.register_buffer("positions", sinusoid_table(config.num_tokens, config.dim))
        self.load_state_dict(_renamed(state), strict=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x.mean(1))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            value_bias = state[name.replace("q_bias", "v_bias")]
            renamed[name.replace("attn.q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value_bias])
        elif not name.endswith("v_bias"):
            plain = name.replace("attn.", "").replace("mlp.", "").replace("patch_embed.proj", "embed")
            renamed[plain.replace("fc_norm", "norm")] = tensor
    return renamed


@torch.no_grad()
def extract_clip(path: str, model: PlainVideoMAE, size: int, device: str) -> tuple[dict[str, np.ndarray], int]:
    """Features of one clip by stride and direction.

    Returns
    -------
    dict
        "<direction>/<level>" -> float32 [windows, dim].
    int
        Forward passes made.
    """
    features, passes = {}, 0
    for direction in ("forward", "reverse"):
        for level, stride in STRIDES.items():
            reader = decord.VideoReader(path)
            found = []
            for start in window_starts(len(reader), stride):
                order = np.minimum(np.arange(start, start + WINDOW), len(reader) - 1)
                if direction == "reverse":
                    order = len(reader) - 1 - order
                frames = torch.from_numpy(reader.get_batch(order).asnumpy())
                pixels = frames.permute(0, 3, 1, 2).float() / 255
                pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
                found.append(model(pixels.transpose(0, 1)[None].to(device)).cpu().numpy())
                passes += 1
            features[f"{direction}/{level}"] = np.concatenate(found)
    return features, passes
