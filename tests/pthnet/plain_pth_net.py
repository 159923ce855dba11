"""PTH-Net written down plainly, level by level with nn.Conv1d on [B, C, T], to hold the packed model against.

Parameters have the published names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = {"high": "H", "middle": "M", "low": "L"}


class ChannelNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class MaskedConv(nn.Module):
    def __init__(self, in_dim: int, dim: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, dim, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.conv(x) * mask


class PlainAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        for name in ("query", "key", "value"):
            self.add_module(f"{name}_conv", MaskedConv(dim, dim, dim))
            self.add_module(f"{name}_norm", ChannelNorm(dim))
            self.add_module(name, nn.Conv1d(dim, dim, 1))
        self.proj = nn.Conv1d(dim, dim, 1)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        heads = []
        for name, x in (("query", query), ("key", memory), ("value", memory)):
            conv, norm, linear = (self.get_submodule(f"{name}{part}") for part in ("_conv", "_norm", ""))
            heads.append(linear(norm(conv(x, mask))).unflatten(1, (8, -1)).transpose(2, 3))
        q, k, v = heads
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        weights = scores.masked_fill(mask[:, :, None] == 0, float("-inf")).softmax(-1)
        return self.proj((weights @ (v * mask[..., None])).transpose(2, 3).flatten(1, 2)) * mask


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class PlainSSD(nn.Module):
    def __init__(self, dim: int, mlp_dim: int, kernel: int, scaled: bool) -> None:
        super().__init__()

        def depthwise(size: int) -> nn.Conv1d:
            return nn.Conv1d(dim, dim, size, padding=size // 2, groups=dim)

        self.ln, self.gn = ChannelNorm(dim), nn.GroupNorm(16, dim)
        self.psi, self.fc, self.global_fc = depthwise(kernel), depthwise(1), depthwise(1)
        for letter, wide in (("H", 5), ("M", 3), ("L", 1)):
            self.add_module(f"convw_{letter}", depthwise(kernel))
            self.add_module(f"convkw_{letter}", depthwise(wide))
        self.cross_att = PlainAttention(dim)
        self.mlp = nn.Sequential(nn.Conv1d(dim, mlp_dim, 1), nn.GELU(), nn.Conv1d(mlp_dim, dim, 1))
        self.drop_path_out: nn.Module = Scale(dim) if scaled else nn.Identity()
        self.drop_path_mlp: nn.Module = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor, level: str) -> Tensor:
        o = self.ln(x)
        w = sum(self.get_submodule(f"{name}_{LETTERS[level]}")(o) for name in ("convw", "convkw"))
        memory = self.fc(o) * F.relu(self.global_fc(o.mean(-1, keepdim=True)))
        y = mask * x + self.drop_path_out(self.cross_att(w * self.psi(o), memory, mask) + o)
        return y + self.drop_path_mlp(self.mlp(self.gn(y)))


class PlainPTHNet(nn.Module):
    """Without drop path; max pooling."""

    def __init__(self, in_dim: int, dim: int, mlp_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embd = nn.ModuleList([MaskedConv(in_dim, dim, 1), MaskedConv(dim, dim, 1)])
        self.embd_norm = nn.ModuleList([ChannelNorm(dim), ChannelNorm(dim)])
        self.stem = nn.ModuleList([PlainSSD(dim, mlp_dim, 1, False) for _ in range(2)])
        self.branch_1 = nn.ModuleList([PlainSSD(dim, mlp_dim, 3, True)])
        self.branch_2 = nn.ModuleList([PlainSSD(dim, mlp_dim, 3, True)])
        self.head = nn.Linear(dim, num_classes)

    def level(self, x: Tensor, valid: Tensor, level: str) -> Tensor:
        mask = valid[:, None].to(x.dtype)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x = F.relu(norm(conv(x, mask)))
        for layer in self.stem:
            x = layer(x, mask, level)
        for branch in (self.branch_1, self.branch_2):
            x, mask = F.max_pool1d(x, 3, 2, 1), mask[..., ::2]
            x = branch[0](x, mask, level)
        return self.head((x * mask).mean(-1))

    def forward(self, pyramid: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {level: self.level(x, valid, level) for level, (x, valid) in pyramid.items()}
