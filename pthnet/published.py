"""Checkpoints of the published systems, in and out. Nothing a file contains is ever run, see `pthnet.unpickle`.

Names of PTH-Net map one to one; `published_layout` has the whole table. Ours keep channels last and drop axes of length
one.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig
from pthnet.packed import Depthwise, SlotConv
from pthnet.pth_net import PTHNet, PTHNetConfig
from pthnet.unpickle import StoredTensor, read_checkpoint
from pthnet.videomae import VideoMAE, VideoMAEConfig
from pthnet.weights import fit, read_safetensors

State = dict[str, Tensor | StoredTensor]

_LETTERS = {"high": "H", "middle": "M", "low": "L"}
_UNUSED = re.compile(r"(^|\.)pos_embed(_norm)?\.")
_CONTAINERS = ("state_dict", "model", "module", "model_state_dict")
_SSD_KERNELS = {"stem.0": 1, "stem.1": 1, "branch_1.0": 3, "branch_2.0": 3}


def read_state(path: str | Path) -> State:
    """The tensors of a weight file, .safetensors or torch.save of a state dict, at the top or in a dict that holds it.

    Prefixes `module.` and `model.` that all keys share are taken off.
    """
    found: Any
    if Path(path).suffix == ".safetensors":
        found = dict(read_safetensors(path)[0])
    else:
        saved = read_checkpoint(path)
        inner = (
            [saved[name] for name in _CONTAINERS if isinstance(saved.get(name), dict)]
            if isinstance(saved, dict)
            else []
        )
        found = inner[0] if inner else saved
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds a {type(found).__name__}, not a dict of tensors")
    state: State = {
        key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor | StoredTensor)
    }
    if not state:
        raise ModelError(f"{path}: no tensors at the top or under {', '.join(_CONTAINERS)}; is it a weight file?")
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def published_layout(model: PTHNet) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published name and shape of every tensor of a PTHNet, by our name."""
    table = {}
    for owner_name, owner in model.named_modules():
        for part, tensor in owner.named_parameters(prefix="", recurse=False):
            name, shape = f"{owner_name}.{part}", tuple(tensor.shape)
            outer = re.sub(r"^(branch_[12])\.", r"\1.0.", owner_name)
            outer = re.sub(r"\.(convk?w)\.(\w+)$", lambda found: f".{found[1]}_{_LETTERS[found[2]]}", outer)
            if isinstance(owner, SlotConv):  # [3, out, in] <- [out, in, 3]
                outer, shape = f"{outer}.conv", (shape[1], shape[2], shape[0])
            elif isinstance(owner, Depthwise) and part == "weight":  # [K, C] <- [C, 1, K]
                outer, shape = (f"{outer}.conv" if outer.endswith("_conv") else outer), (shape[1], 1, shape[0])
            elif (
                isinstance(owner, nn.Linear) and part == "weight" and owner_name != "head"
            ):  # [out, in] <- [out, in, 1]
                outer, shape = ("downsample.1" if outer == "downsample" else outer), (*shape, 1)
            elif isinstance(owner, nn.LayerNorm) or part == "scale":  # [C] <- [1, C, 1]
                shape = (1, shape[0], 1)
            elif outer == "downsample":
                outer = "downsample.1"
            table[name] = (f"{outer}.{part}", shape)
    return table


def _to_ours(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 3 and tuple(tensor.shape) == (shape[1], shape[2], shape[0]):
        return tensor.permute(2, 0, 1)
    if tensor.ndim == 3 and tensor.shape[1] == 1 and len(shape) == 2:
        return tensor[:, 0].T
    return tensor.reshape(shape)


def _to_published(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    elif len(shape) == 3 and shape[1] == 1 and tensor.ndim == 2:
        tensor = tensor.T
    return tensor.reshape(shape).contiguous().clone()


def load_pthnet(path: str | Path) -> PTHNet:
    """Load a published PTH-Net, in evaluation mode; its settings are read off the shapes.

    Parameters
    ----------
    path : path of a .pth or .safetensors file
        The published dict with `state_dict`, or a state dict, with or without `module.` before the names.

    Raises
    ------
    ModelError
        Not a PTH-Net, or a damaged file; names the key, both shapes and the file.
    """
    state = {name: value for name, value in read_state(path).items() if not _UNUSED.search(name)}

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in state:
            raise ModelError(
                f"{path}: no {name} in it, so it is no PTH-Net; its first key is {next(iter(state), 'missing')}"
            )
        found = tuple(state[name].shape)
        if len(found) != rank:
            raise ModelError(f"{path}: {name} is {list(found)}, a PTH-Net has {rank} axes there")
        return found

    dim, in_dim, _ = shape("embd.0.conv.weight", 3)
    config = PTHNetConfig(
        in_dim=in_dim,
        dim=dim,
        mlp_dim=shape("stem.0.mlp.0.weight", 3)[0],
        num_classes=shape("head.weight", 2)[0],
        downsample="avg" if "downsample.1.weight" in state else "max",
    )
    model = PTHNet(config)
    ours: State = {}
    expected = model.state_dict()
    table = published_layout(model)
    for name, (published, published_shape) in table.items():
        if published not in state:
            raise ModelError(f"{path}: no {published} {list(published_shape)} in it; fetch the file again")
        source = state.pop(published)
        if tuple(source.shape) != published_shape:
            raise ModelError(f"{path}: {published} is {list(source.shape)}, the model expects {list(published_shape)}")
        ours[name] = _to_ours(
            source.load() if isinstance(source, StoredTensor) else source, tuple(expected[name].shape)
        )
    fit(model, {**ours, **state}, path)
    return model.eval()


def export_pthnet(model: PTHNet, path: str | Path, *, epoch: int = 0, best_acc: float = 0.0) -> None:
    """Write a PTHNet in the published layout, so that the published scripts load it.

    The unused parameters that layout carries are written with the values PyTorch would have started them with. The file
    is plain: `torch.load(path, weights_only=True)` reads it.

    Parameters
    ----------
    model : PTHNet
        Without standardisation, which the published layout cannot express.
    path : path to write
    epoch, best_acc
        What the published scripts look up beside the weights.
    """
    config = model.config
    if config.standardize:
        raise ModelError(
            "the published layout has no place for standardisation; export a model without it or use save_model"
        )
    ours = model.state_dict()
    state = {
        f"module.{name}": _to_published(ours[key].detach().cpu().float(), shape)
        for key, (name, shape) in published_layout(model).items()
    }
    for prefix, kernel in {"": 3, **{f"{name}.": kernel for name, kernel in _SSD_KERNELS.items()}}.items():
        state[f"module.{prefix}pos_embed.conv.weight"] = (torch.rand(config.dim, 1, kernel) * 2 - 1) * kernel**-0.5
        state[f"module.{prefix}pos_embed.conv.bias"] = torch.zeros(config.dim)
        state[f"module.{prefix}pos_embed_norm.weight"] = torch.ones(1, config.dim, 1)
        state[f"module.{prefix}pos_embed_norm.bias"] = torch.zeros(1, config.dim, 1)
    torch.save({"epoch": epoch, "state_dict": state, "best_acc": best_acc}, path)


def load_videomae(path: str | Path, config: VideoMAEConfig | None = None) -> VideoMAE:
    """Load a VideoMAE V2 encoder, in evaluation mode; a classification head in the file is dropped.

    Parameters
    ----------
    path : path of a .pth or .safetensors file
        Half-precision weights become float32.
    config : VideoMAEConfig, optional
        Read off the shapes when not given: then the input is 16 frames of 224 x 224, and the width must be a published
        one, as the number of heads leaves no trace in the weights.
    """
    state = {name: value for name, value in read_state(path).items() if not name.startswith(("head.", "encoder.mask"))}
    if config is None:
        stem, hidden = state.get("patch_embed.proj.weight"), state.get("blocks.0.mlp.fc1.weight")
        if stem is None or hidden is None or len(stem.shape) != 5:
            raise ModelError(
                f"{path}: no patch_embed.proj.weight [dim, 3, 2, p, p] in it, so it is no VideoMAE encoder"
            )
        heads = {
            named.dim: named.heads for named in map(VideoMAEConfig.named, ("small", "base", "large", "huge", "giant"))
        }
        dim = int(stem.shape[0])
        if dim not in heads:
            raise ModelError(
                f"{path}: no published encoder is {dim} wide ({', '.join(map(str, heads))} are); give a VideoMAEConfig"
            )
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        config = VideoMAEConfig(
            patch_size=int(stem.shape[-1]), dim=dim, depth=depth, heads=heads[dim], mlp_dim=int(hidden.shape[0])
        )
    model = VideoMAE(replace(config, num_classes=0))
    fit(model, state, path)
    return model.eval()


def load_htnet(path: str | Path, config: HTNetConfig | None = None) -> HTNet:
    """Load a published HTNet, in evaluation mode; settings are read off the shapes, for 28 x 28 and 3 heads."""
    state = read_state(path)
    if config is None:
        patch, head = state.get("to_patch_embedding.1.weight"), state.get("mlp_head.2.weight")
        if patch is None or head is None or len(patch.shape) < 2:
            raise ModelError(f"{path}: no to_patch_embedding.1.weight [dim, 3 p p, 1, 1] in it, so it is no HTNet")
        pairs = {
            (int(found[1]), int(found[2]))
            for name in state
            if (found := re.match(r"layers\.(\d+)\.0\.layers\.(\d+)\.", name))
        }
        levels = sorted({level for level, _ in pairs})
        config = HTNetConfig(
            patch_size=round((patch.shape[1] / 3) ** 0.5),
            dim=int(patch.shape[0]),
            depths=tuple(sum(1 for at, _ in pairs if at == level) for level in levels),
            num_classes=int(head.shape[0]),
        )
    model = HTNet(config)
    fit(model, state, path)
    return model.eval()
