"""Weight files: tensors fitted into a model, errors that name the key, and our own format (safetensors, settings)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pthnet.errors import ModelError
from pthnet.unpickle import StoredTensor

# What a file of ours may name; nothing else is ever imported because a file says so.
_MODELS = {"PTHNet": "pthnet.pth_net", "VideoMAE": "pthnet.videomae", "HTNet": "pthnet.htnet"}


def fit(model: nn.Module, state: Mapping[str, Tensor | StoredTensor], path: str | Path) -> None:
    """Copy `state` into the model, cast to its dtypes.

    Raises
    ------
    ModelError
        A key missing, unknown or of another shape; the message names it, both shapes and the file.
    """
    wanted = model.state_dict()
    for key, target in wanted.items():
        if key not in state:
            raise ModelError(
                f"{path}: no {key} {list(target.shape)} in it; is it a {type(model).__name__} of these settings?"
            )
        if tuple(state[key].shape) != tuple(target.shape):
            raise ModelError(f"{path}: {key} is {list(state[key].shape)}, the model expects {list(target.shape)}")
    unknown = sorted(set(state) - set(wanted))
    if unknown:
        raise ModelError(
            f"{path}: {unknown[0]} {list(state[unknown[0]].shape)} has no place in a {type(model).__name__} "
            f"({len(unknown)} such keys); load the file as the model it was saved from"
        )
    with torch.no_grad():
        for key, target in wanted.items():
            source = state[key]
            target.copy_(source.load() if isinstance(source, StoredTensor) else source)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file, or a damaged one ({error}); fetch it again") from error


def save_model(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Save a PTHNet, FusedPTHNet, VideoMAE or HTNet with its settings, as safetensors.

    Parameters
    ----------
    model : Module
    path : path to write
    metadata : mapping of str to str, optional
        Kept beside the settings; `read_safetensors` returns it.
    """
    name = type(model).__name__
    if name == "FusedPTHNet":
        config: dict[str, Any] = {part: asdict(getattr(model, f"{part}_net").config) for part in ("forward", "reverse")}
    elif name in _MODELS:
        config = asdict(model.config)  # type: ignore[call-overload]
    else:
        raise ModelError(f"cannot save a {name} with its settings; known are FusedPTHNet, {', '.join(_MODELS)}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, str(path), {**(metadata or {}), "model": name, "config": json.dumps(config)})


def load_model(path: str | Path) -> Any:
    """Rebuild what `save_model` wrote: a model in evaluation mode, on the CPU."""
    state, metadata = read_safetensors(path)
    name = metadata.get("model", "")
    try:
        config = json.loads(metadata["config"])
        if name == "FusedPTHNet":
            parts = [_build("PTHNet", config[part]) for part in ("forward", "reverse")]
            model = import_module(_MODELS["PTHNet"]).FusedPTHNet(*parts)
        else:
            model = _build(name, config)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{path}: does not say which model it is ({error}); published files go through pthnet.published"
        ) from error
    fit(model, state, path)
    return model.eval()


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    room = import_module(_MODELS[name])
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return getattr(room, name)(getattr(room, f"{name}Config")(**settings))
