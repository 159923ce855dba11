"""Weights of the frame models, in and out: torchvision's and timm's files, the authors' checkpoints, Paddle's, our own.

    load_frame_weights("r3d_18.pth", model, head="fresh")

Files are read as data; no code in them is run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_HEADS = ("fc.", "head.fc.")
# in the file, yet not ours: rebuilt from the sizes, or left out of the network on purpose
_DERIVED = ("relative_position_index", "attn_mask")


def load_frame_weights(path: str | Path, model: nn.Module, *, head: Literal["strict", "fresh"] = "strict") -> list[str]:
    """Load a weight file of any published layout into a frame model.

    Parameters
    ----------
    path
        torch.save file (a state dict, or a dict that holds one: `state_dict`, `model`), .safetensors or .pdparams.
        A `module.` prefix, older timm's and the original Swin's names are understood.
    model
        ResNet18, R3D18 or Swin; changed in place.
    head
        "strict": the classifier must fit. "fresh": a classifier for another number of classes is left as initialised.

    Returns
    -------
    list of str
        Names in the file that the model has no place for and that were left out on purpose.
    """
    return fit_state(model, read_state(path), source=str(path), head=head)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file by name, prefixes removed."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such weight file")
    loaded: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded = load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} is no safetensors file ({error}); fetch it again") from None
    elif path.suffix == ".pdparams":
        from pthnet.paddle import read_pdparams, swin_from_paddle

        loaded = swin_from_paddle(read_pdparams(path))
    else:
        from pthnet.unpickle import read_checkpoint

        loaded = read_checkpoint(path)
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[k] for k in ("state_dict", "model", "module") if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    state = {
        str(name).removeprefix("module."): tensor
        for name, value in loaded.items()
        if (tensor := _tensor(value)) is not None
    }
    if not state:
        raise ModelError(f"{path} holds no tensors; expected a state dict, or a checkpoint with one under 'state_dict'")
    return state


def fit_state(
    model: nn.Module, state: Mapping[str, Any], *, source: str, head: Literal["strict", "fresh"] = "strict"
) -> list[str]:
    """Copy tensors by name into a frame model; see `load_frame_weights`."""
    given = _ours({name: tensor for name, value in state.items() if (tensor := _tensor(value)) is not None}, model)
    wanted = model.state_dict()
    if head == "fresh":
        unfit = [n for n in given if n.startswith(_HEADS) and n in wanted and given[n].shape != wanted[n].shape]
        for name in wanted if unfit else ():
            if name.startswith(_HEADS):
                given.pop(name, None)
    wrong = [n for n in given if n in wanted and given[n].shape != wanted[n].shape]
    if wrong:
        raise ModelError(
            f"{source}: {wrong[0]} is {tuple(given[wrong[0]].shape)} there and {tuple(wanted[wrong[0]].shape)} in this "
            f"model ({len(wrong)} tensors differ); choose the model, classes and sizes that the file was made for"
        )
    fresh = {n for n in wanted if head == "fresh" and n.startswith(_HEADS)}
    missing = [n for n in wanted if n not in given and n not in fresh and not n.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} tensors of {type(model).__name__} (the first: {missing[0]}); it "
            f"holds weights of another network, whose first tensor is {next(iter(given), 'none')}"
        )
    unknown = [n for n in given if n not in wanted]
    dropped = [n for n in unknown if n.startswith("norm.")]
    if len(unknown) > len(dropped):
        odd = next(n for n in unknown if n not in dropped)
        raise ModelError(f"{source} holds {odd}, for which {type(model).__name__} has no place; is it another network?")
    model.load_state_dict({**wanted, **{n: t for n, t in given.items() if n in wanted}})
    return dropped


def save_frame_model(folder: str | Path, spec: FrameModel, model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write model.safetensors and model.json, which `load_frame_model` reads; nothing is pickled."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps({"model": json.loads(spec.to_json()), "facts": dict(facts)}, indent=1))


def load_frame_model(folder: str | Path) -> tuple[FrameModel, nn.Module, dict[str, Any]]:
    """Description, network in evaluation mode, and facts of a folder that `save_frame_model` wrote."""
    folder = Path(folder)
    try:
        text = json.loads((folder / DESCRIPTION).read_text())
        described, facts = json.dumps(text["model"]), dict(text["facts"])
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no {DESCRIPTION}; give the folder that finetune wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / DESCRIPTION} is damaged ({error}); fetch it again") from None
    spec = FrameModel.from_json(described)
    model = spec.build()
    load_frame_weights(folder / WEIGHTS, model)
    return spec, model.eval(), facts


def _tensor(value: Any) -> Tensor | None:
    """A tensor of whatever a reader gave for one, or None for anything else."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__array_interface__"):
        return torch.from_numpy(value.copy())
    load = getattr(value, "load", None)  # tensors of a torch file are read when they are asked for
    return load() if callable(load) else None


def _ours(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names as this project has them: those of torchvision and of today's timm."""
    state = {n: t for n, t in state.items() if not n.endswith(_DERIVED)}
    if not hasattr(model, "patch_embed"):
        return state
    late = any(n.startswith("layers.0.downsample.") for n in state)
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if late and parts[0] == "layers" and parts[2] == "downsample":
            # older timm and the original merge at a stage's end, today's timm at the next one's entry
            parts[1] = str(int(parts[1]) + 1)
        if parts[0] == "head" and len(parts) == 2:
            parts.insert(1, "fc")
        renamed[".".join(parts)] = tensor
    return renamed
