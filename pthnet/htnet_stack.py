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


class _Convolution(torch.autograd.Function):
    """3x3 convolution, zero padded: x [G, B, side, side, C], weight [G, out, 3, 3, C], bias [G, out] -> [G, B P, out].

    Every position is put beside its neighbours in its row only, which copies three positions and not nine. The kernel's
    three rows are then products with whole rows of the grid, of which the outer two lack one. Rows come first in
    memory, so that several of them are one matrix.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        models, batch, side, _, channels = x.shape
        beside = x.new_zeros(models, side, batch, side, 3, channels)
        for column, (to, source) in enumerate(_BESIDE):
            beside[:, :, :, to, column] = x.transpose(1, 2)[:, :, :, source]
        beside = beside.view(models, side, batch * side, 3 * channels)
        ctx.save_for_backward(beside, weight)
        out = torch.baddbmm(bias[:, None], beside.flatten(1, 2), weight[:, :, 1].flatten(2).mT)
        by_row = out.view(models, side, batch * side, -1)
        for row, (to, source) in ((0, _BESIDE[0]), (2, _BESIDE[2])):
            kernel = weight[:, :, row].flatten(2).mT
            by_row[:, to].flatten(1, 2).baddbmm_(beside[:, source].flatten(1, 2), kernel)
        return by_row.view(models, side, batch, side, -1).transpose(1, 2).reshape(models, batch * side * side, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        beside, weight = ctx.saved_tensors
        models, side, across, _ = beside.shape
        batch, channels = across // side, weight.shape[-1]
        gradient = gradients[0].reshape(models, batch, side, side, -1).transpose(1, 2).reshape(models, side, across, -1)
        whole = gradient.flatten(1, 2)
        of_beside = torch.bmm(whole, weight[:, :, 1].flatten(2)).view(beside.shape)
        of_weight = torch.empty_like(weight)
        of_weight[:, :, 1] = torch.bmm(whole.mT, beside.flatten(1, 2)).view_as(of_weight[:, :, 1])
        for row, (to, source) in ((0, _BESIDE[0]), (2, _BESIDE[2])):
            part = gradient[:, to].flatten(1, 2)
            of_beside[:, source].flatten(1, 2).baddbmm_(part, weight[:, :, row].flatten(2))
            product = torch.bmm(part.mT, beside[:, source].flatten(1, 2))
            of_weight[:, :, row] = product.view_as(of_weight[:, :, row])
        taps = of_beside.view(models, side, batch, side, 3, channels)
        of_x = taps.new_empty(models, batch, side, side, channels)
        by_row = of_x.transpose(1, 2)
        by_row.copy_(taps[:, :, :, :, 1])
        for column, (to, source) in ((0, _BESIDE[0]), (2, _BESIDE[2])):
            by_row[:, :, :, source] += taps[:, :, :, to, column]
        return of_x, of_weight, whole.sum(1)


# (positions written, positions read) along a row or a column by the first, middle and last tap of a kernel of three
_BESIDE = (
    (slice(1, None), slice(None, -1)),
    (slice(None), slice(None)),
    (slice(None, -1), slice(1, None)),
)


class _Linear(torch.autograd.Function):
    """x [G, T, in] times weight [G, out, in] transposed, plus bias [G, out].

    Its own backward, because autograd's transposes the weights' gradients, which must then be copied into place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return of_x, torch.bmm(gradient.mT, x), gradient.sum(1)


class _Layer(torch.autograd.Function):
    """A transformer layer: y = x + W_out W_v norm(x) + b_out, then y + W_narrow gelu(W_wide norm(y) + b_wide) + b.

    One node of the graph with its own backward, which writes over what is no longer needed: a layer's eleven operations
    are too short for autograd's bookkeeping, and on a CPU memory just written is still in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        gain, bias, to_v, to_out, out_bias, gain_2, bias_2, wide, wide_bias, narrow, narrow_bias = parameters
        normed, *norm = _normed(x, gain, bias)
        # The two maps are multiplied first where there are many more tokens than channels.
        composed = torch.bmm(to_out, to_v) if x.shape[1] >= 4 * x.shape[2] else None
        v = torch.bmm(normed, to_v.mT) if composed is None else normed
        y = torch.baddbmm(x, v, (to_out if composed is None else composed).mT).add_(out_bias[:, None])
        normed_2, *norm_2 = _normed(y, gain_2, bias_2)
        before = torch.baddbmm(wide_bias[:, None], normed_2, wide.mT)
        hidden = F.gelu(before)
        ctx.of_norms = len(norm)
        ctx.save_for_backward(x, y, normed, normed_2, v, before, hidden, composed, *norm, *norm_2, *parameters)
        return torch.baddbmm(y, hidden, narrow.mT).add_(narrow_bias[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        x, y, normed, normed_2, v, before, hidden, composed, *rest = ctx.saved_tensors
        norm, norm_2, parameters = rest[: ctx.of_norms], rest[ctx.of_norms : 2 * ctx.of_norms], rest[2 * ctx.of_norms :]
        gain, bias, to_v, to_out, _, gain_2, bias_2, wide, _, narrow, _ = parameters
        of_narrow, of_narrow_bias = torch.bmm(gradient.mT, hidden), gradient.sum(1)
        of_hidden = torch.bmm(gradient, narrow)
        of_before = torch.ops.aten.gelu_backward.grad_input(of_hidden, before, grad_input=of_hidden)
        of_wide, of_wide_bias = torch.bmm(of_before.mT, normed_2), of_before.sum(1)
        of_y, of_gain_2, of_bias_2 = _normed_backward(torch.bmm(of_before, wide), y, gain_2, bias_2, norm_2)
        of_y += gradient
        of_out_bias = of_y.sum(1)
        if composed is None:
            of_out, of_v = torch.bmm(of_y.mT, v), torch.bmm(of_y, to_out)
            of_to_v, of_normed = torch.bmm(of_v.mT, normed), torch.bmm(of_v, to_v)
        else:
            of_both = torch.bmm(of_y.mT, normed)
            of_out, of_to_v = torch.bmm(of_both, to_v.mT), torch.bmm(to_out.mT, of_both)
            of_normed = torch.bmm(of_y, composed)
        of_x, of_gain, of_bias = _normed_backward(of_normed, x, gain, bias, norm)
        of_x += of_y
        first = of_x, of_gain, of_bias, of_to_v, of_out, of_out_bias
        return *first, of_gain_2, of_bias_2, of_wide, of_wide_bias, of_narrow, of_narrow_bias


_EPS = 1e-5


def _normed(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Layer norm of x [G, T, C] by each model's gain and bias [G, C, ...]; and what the way back needs beside them."""
    channels = x.shape[-1:]
    if len(x) == 1:
        return torch.native_layer_norm(x, channels, gain.flatten(), bias.flatten(), _EPS)
    plain, mean, scale = torch.native_layer_norm(x, channels, None, None, _EPS)
    return torch.addcmul(bias.flatten(1)[:, None], plain, gain.flatten(1)[:, None]), mean, scale, plain


def _normed_backward(
    gradient: Tensor, x: Tensor, gain: Tensor, bias: Tensor, kept: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gain and bias; `gradient` may be written over."""
    backward, channels = torch.ops.aten.native_layer_norm_backward, x.shape[-1:]
    if len(x) == 1:
        mean, scale = kept
        given = gain.flatten(), bias.flatten()
        of_x, of_gain, of_bias = backward(gradient, x, channels, mean, scale, *given, [True, True, True])
    else:
        mean, scale, plain = kept
        of_bias, of_gain = gradient.sum(1), (gradient * plain).sum(1)
        gradient *= gain.flatten(1)[:, None]
        of_x, _, _ = backward(gradient, x, channels, mean, scale, None, None, [True, False, False])
    return of_x, of_gain.reshape(gain.shape), of_bias.reshape(bias.shape)


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


# In the order that `_Layer` takes them.
_OF_A_LAYER = (
    *("0.norm.g", "0.norm.b", "0.fn.to_v.weight", "0.fn.to_out.0.weight", "0.fn.to_out.0.bias"),
    *("1.norm.g", "1.norm.b", "1.fn.net.0.weight", "1.fn.net.0.bias", "1.fn.net.3.weight", "1.fn.net.3.bias"),
)


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
                x = _Layer.apply(x, *(self.parameters[f"{name}.{part}"] for part in _OF_A_LAYER))
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

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return _Linear.apply(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

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
        return _Convolution.apply(x.reshape(models, batch, side, side, channels), weight, bias)


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
