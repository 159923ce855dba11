"""Many HTNets as one: a layer of G models is one batched product, so that folds train side by side on a device.

Only what the one-token attention uses is kept: v and the output map. q and k have zero gradients, which Adam without
weight decay turns into no change, so their initial values are exact at any epoch and are written back on export.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig, Patches

State = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]

# G models, B batch, P positions of the grid, C channels; tokens are [G, B * P, C], positions row by row


def _window_taps(x: Tensor, side: int) -> list[Tensor]:
    """The nine shifted views [B', side, side, C] of a zero-padded map [B', side + 2, side + 2, C]."""
    return [x[:, row : row + side, column : column + side] for row in range(3) for column in range(3)]


class _Neighbours(torch.autograd.Function):
    """[B', side, side, C] -> [B' side side, 9 C]: every position beside its eight neighbours, zero outside the grid."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        _, side, _, channels = ctx.shape = x.shape  # type: ignore[attr-defined]
        return torch.cat(_window_taps(F.pad(x, (0, 0, 1, 1, 1, 1)), side), dim=-1).reshape(-1, 9 * channels)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        batch, side, _, channels = ctx.shape  # type: ignore[attr-defined]
        padded = gradient.new_zeros(batch, side + 2, side + 2, channels)
        taps = gradient.reshape(batch, side, side, 9, channels)
        for k, view in enumerate(_window_taps(padded, side)):
            view += taps[:, :, :, k]
        return padded[:, 1:-1, 1:-1]


class _Linear(torch.autograd.Function):
    """x [G, T, in] times weight [G, out, in] transposed, plus bias [G, out] or None, plus residual [G, T, out] or None.

    Its own backward, because autograd's transposes the weights' gradients, which must then be copied into place.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.added = bias is not None, residual is not None
        if residual is not None:
            out = torch.baddbmm(residual, x, weight.mT)
            return out if bias is None else out.add_(bias[:, None])
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        return (
            torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None,
            torch.bmm(gradient.mT, x),
            gradient.sum(1) if ctx.biased else None,
            gradient if ctx.added else None,
        )


class _Composed(torch.autograd.Function):
    """x + normed W_v^T W_out^T + bias, the two maps multiplied first: pays off with many more tokens than channels."""

    @staticmethod
    def forward(ctx: Any, normed: Tensor, to_v: Tensor, to_out: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        both = torch.bmm(to_out, to_v)  # [G, C, C]
        ctx.save_for_backward(normed, to_v, to_out, both)
        return torch.baddbmm(x, normed, both.mT).add_(bias[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        normed, to_v, to_out, both = ctx.saved_tensors
        of_both = torch.bmm(gradient.mT, normed)
        of_v, of_out = torch.bmm(to_out.mT, of_both), torch.bmm(of_both, to_v.mT)
        return torch.bmm(gradient, both), of_v, of_out, gradient.sum(1), gradient


class _Dense(torch.autograd.Function):
    """3x3 kernels [G, 2C, 3, 3, C] as the matrix [G, 4 2C, 4 C] that maps a whole 2 x 2 grid to itself.

    Every position sees every other: 16 taps, where nine for each of four positions would waste 20 of 36.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = models, wide, _, _, channels = weight.shape
        dense = weight.new_empty(models, 4, wide, 4, channels)
        for to, source, row, column in _TAPS_OF_TWO_BY_TWO:
            dense[:, to, :, source] = weight[:, :, row, column]
        return dense.reshape(models, 4 * wide, 4 * channels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        models, wide, _, _, channels = ctx.shape
        taps = gradients[0].reshape(models, 4, wide, 4, channels)
        whole = taps.new_zeros(ctx.shape)
        for to, source, row, column in _TAPS_OF_TWO_BY_TWO:
            whole[:, :, row, column] += taps[:, to, :, source]
        return whole


# (position written, position read, row and column of the kernel between them)
_TAPS_OF_TWO_BY_TWO = [(v, u, 1 + u // 2 - v // 2, 1 + u % 2 - v % 2) for v in range(4) for u in range(4)]


class HTNetStack:
    """G HTNets of one configuration with their parameters stacked along a first axis.

    Parameters
    ----------
    config
        Sizes; `attention` must be "block" and every block must hold one token.
    states
        One per model: its published-layout state dict, or the pairs of one as `HTNet.initial_parameters` draws them;
        read side by side in threads. q and k are remembered, not trained.
    device
        Where the stack computes.

    Attributes
    ----------
    parameters
        Name -> leaf tensor [G, ...]; `to_v` stands in the place of the published `to_qkv`.

    Raises
    ------
    ModelError
        When an attention block holds several tokens: q and k matter then. When a state is of another configuration.
    """

    def __init__(self, config: HTNetConfig, states: Sequence[State], device: torch.device | str = "cpu") -> None:
        if any(config.block_side(level) != 1 for level in range(len(config.depths))):
            raise ModelError(
                "models can be stacked when every attention block holds one token (28 x 28 input); train one by one"
            )
        self.config, self.models = config, len(states)
        with torch.device("meta"):
            plan = HTNet(config).state_dict()
        self._shapes = {name: value.shape for name, value in plan.items()}
        self._frozen: list[dict[str, Tensor]] = [{} for _ in states]
        self.parameters: dict[str, Tensor] = {}
        for name, value in plan.items():
            trained = _laid_out(_of_v(value) if ".to_qkv." in name else value)
            self.parameters[name.replace("to_qkv", "to_v")] = torch.empty(self.models, *trained.shape, device=device)
        with ThreadPoolExecutor(min(self.models, _threads(device))) as pool:
            list(pool.map(self._load, range(self.models), states))
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self._patches = Patches(config.patch_size)

    def _load(self, model: int, state: State) -> None:
        """Copy one model to its place, tensor by tensor: of one that is still being drawn no more is ever held."""
        missing = dict(self._shapes)
        for name, value in state.items() if isinstance(state, Mapping) else state:
            if value.shape != missing.pop(name, None):
                raise ModelError(f"{name} {list(value.shape)} has no place in a model of {self.config}")
            if ".to_qkv." in name:
                self._frozen[model][name] = value[: 2 * len(value) // 3].clone()
                name, value = name.replace("to_qkv", "to_v"), _of_v(value)
            self.parameters[name][model].copy_(_laid_out(value))
        if missing:
            raise ModelError(f"a state dict lacks {', '.join(missing)}; give whole models")

    def patches(self, images: Tensor) -> Tensor:
        """Images [N, 3, S, S] -> patches [N, P, 3 p p]; cut once, used by every model and epoch."""
        return self._patches(images).flatten(2).transpose(1, 2).contiguous()

    def state_dict(self, model: int) -> dict[str, Tensor]:
        """One model's parameters, published names and shapes, on the CPU; q and k as they were at the start."""
        state = {}
        for name, shape in self._shapes.items():
            if ".to_qkv." in name:
                value = self.parameters[name.replace("to_qkv", "to_v")][model].detach().cpu()
                state[name] = torch.cat([self._frozen[model][name], value.reshape(-1, *shape[1:])])
            else:
                value = self.parameters[name][model].detach().cpu()
                state[name] = (
                    value.permute(0, 3, 1, 2) if len(shape) == 4 and shape[-1] == 3 else value.reshape(shape)
                ).clone()
        return state

    def __call__(self, patches: Tensor) -> Tensor:
        """Patches [G, B, P, 3 p p], each model's own batch -> logits [G, B, num_classes]."""
        models, batch = patches.shape[:2]
        side = self.config.grid
        x = self._linear(patches.flatten(1, 2), "to_patch_embedding.1")  # [G, B P, C]
        for level, depth in enumerate(self.config.depths):
            x = x + self.parameters[f"layers.{level}.0.pos_emb"][:, :, None]
            for layer in range(depth):
                name = f"layers.{level}.0.layers.{layer}"
                x = self._attend(x, name)
                hidden = F.gelu(self._linear(self._norm(x, f"{name}.1.norm"), f"{name}.1.fn.net.0"))
                x = self._linear(hidden, f"{name}.1.fn.net.3", x)
            if level < len(self.config.depths) - 1:
                x = self._norm(self._convolve(x, f"layers.{level}.1.0", batch, side), f"layers.{level}.1.1")
                maps = x.reshape(models * batch, side, side, -1).permute(0, 3, 1, 2)
                side //= 2
                if side == 1:
                    x = maps.amax(dim=(2, 3)).reshape(models, batch, -1)  # the 3x3 window sees the whole 2x2 grid
                else:
                    x = F.max_pool2d(maps, 3, 2, 1).permute(0, 2, 3, 1).reshape(models, batch * side * side, -1)
        pooled = self._norm(x, "mlp_head.0").reshape(models, batch, side * side, -1).mean(dim=2)
        return self._linear(pooled, "mlp_head.2")

    def _attend(self, x: Tensor, name: str) -> Tensor:
        normed, to_v = self._norm(x, f"{name}.0.norm"), self.parameters[f"{name}.0.fn.to_v.weight"]
        out = f"{name}.0.fn.to_out.0"
        if x.shape[1] < 4 * x.shape[2]:
            return self._linear(_Linear.apply(normed, to_v), out, x)
        return _Composed.apply(normed, to_v, self.parameters[f"{out}.weight"], self.parameters[f"{out}.bias"], x)

    def _linear(self, x: Tensor, name: str, residual: Tensor | None = None) -> Tensor:
        parameters = self.parameters
        return _Linear.apply(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], residual)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gain, bias = self.parameters[f"{name}.g"], self.parameters[f"{name}.b"]
        channels = x.shape[-1:]
        if self.models == 1:
            return F.layer_norm(x, channels, gain.flatten(), bias.flatten())
        return torch.addcmul(bias.flatten(1)[:, None], F.layer_norm(x, channels), gain.flatten(1)[:, None])

    def _convolve(self, x: Tensor, name: str, batch: int, side: int) -> Tensor:
        """3x3 convolution, zero padded, as one product per model: [G, B P, C] -> [G, B P, 2 C]."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]  # [G, 2C, 3, 3, C]
        models, wide, _, _, channels = weight.shape
        if side == 2:
            out = _Linear.apply(x.reshape(models, batch, 4 * channels), _Dense.apply(weight), bias.repeat(1, 4))
            return out.reshape(models, batch * 4, wide)
        columns = _Neighbours.apply(x.reshape(models * batch, side, side, channels)).reshape(models, -1, 9 * channels)
        return _Linear.apply(columns, weight.flatten(2), bias)


def stack_of(config: HTNetConfig, seeds: Sequence[int], device: torch.device | str = "cpu") -> HTNetStack:
    """Freshly initialised models, one per seed; the same seeds give the same models on any machine."""
    with torch.device("meta"):
        model = HTNet(config)
    return HTNetStack(config, [model.initial_parameters(seed) for seed in seeds], device)


def _of_v(to_qkv: Tensor) -> Tensor:
    return to_qkv[2 * len(to_qkv) // 3 :]


def _laid_out(value: Tensor) -> Tensor:
    """A published tensor as the stack computes with it: 1x1 convolutions as matrices, 3x3 ones channels last."""
    if value.ndim == 4:
        return value.flatten(1) if value.shape[-1] == 1 else value.permute(0, 2, 3, 1)  # [out, in] or [out, 3, 3, in]
    return value


def _threads(device: torch.device | str) -> int:
    """That fill a stack: the cores this process reckons with, on a GPU, which then waits for them, all it may use."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else len(os.sched_getaffinity(0))
