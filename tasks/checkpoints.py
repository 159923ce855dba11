"""The state of a training after an epoch, as one safetensors and one JSON file: no pickle, nothing runs on load.

state.safetensors   model/<name>, momentum/<name>, ema/<name>, selected/<name>, logits/<which>
state.json          epochs done, the selected epoch and its score, the history, the settings
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pthnet.errors import ModelError

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(kw_only=True)
class TrainState:
    """Everything a training needs to go on after an epoch as if it had never stopped.

    Random numbers need no entry: every epoch seeds its generators from (seed, epoch).

    Attributes
    ----------
    epoch : int
        Epochs done.
    model, momentum, ema, selected : dict of name to Tensor
        Weights after the epoch, SGD's momentum, the running average (empty when off), the weights of the selected epoch
        (empty when the last epoch is selected).
    selected_epoch, selected_score
        1-based epoch the selection rule picked so far, and its score.
    logits : dict of name to float32 [n, classes]
        "validation" and "test" of the selected epoch; "last" on the test clips after the newest epoch.
    history : list of dict
        One record an epoch.
    settings : dict
        Of the training that made this, so that a resume with others is refused.
    """

    epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    selected: dict[str, Tensor] = field(default_factory=dict)
    selected_epoch: int = 0
    selected_score: float = float("-inf")
    stale: int = 0
    logits: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: of the selected epoch, averaged when an average was kept."""
        return self.selected or self.ema or self.model


_GROUPS = ("model", "momentum", "ema", "selected", "logits")
_FACTS = ("epoch", "selected_epoch", "selected_score", "stale", "history", "settings")


def save_state(directory: str | Path, state: TrainState) -> None:
    """Write the two files into an existing directory."""
    from safetensors.torch import save_file

    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group in _GROUPS
        for name, tensor in getattr(state, group).items()
    }
    save_file(tensors, Path(directory) / TENSORS)
    facts = {name: getattr(state, name) for name in _FACTS}
    (Path(directory) / FACTS).write_text(json.dumps(facts))


def load_state(directory: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """Read what `save_state` wrote.

    Raises
    ------
    ModelError
        When the files are not there or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((Path(directory) / FACTS).read_text())
        tensors = load_file(Path(directory) / TENSORS, device=str(device))
    except (FileNotFoundError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{directory} holds no whole training state ({error}); remove it to train from the start"
        ) from error
    state = TrainState(**facts)
    for key, tensor in tensors.items():
        group, name = key.split("/", 1)
        getattr(state, group)[name] = tensor
    return state
