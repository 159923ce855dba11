"""Settings of a fine-tuning, each model's published recipe, and the state that a resumed run starts from."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel

CHECKPOINT = "finetune.pt"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a frame model is trained; `published` gives each model's own recipe.

    Parameters
    ----------
    optimizer, lr, momentum, weight_decay
        "sgd" or "adamw"; momentum is SGD's.
    epochs, batch_size
        batch_size is each worker's.
    decay
        "step": times 0.1 every `step_epochs`. "cosine": to zero, after a linear rise over `warmup_epochs`.
    label_smoothing
        Of the cross entropy.
    gamma
        Weight of the EC-STFL loss on the pooled features; 0 leaves it out.
    balanced
        Show rare classes more often, r(c) = max(1, sqrt(0.15 / f_c)).
    augment
        Recipe of `pthnet.augment.AUGMENT`.
    precision
        "fp32", or "bf16" by autocast.
    selection
        "last" keeps the last epoch. "best" keeps the epoch that scores best on the validation list, as the papers do
        with the list they report on.
    select_by
        The score: a name of `pthnet.metrics.METRICS`.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 200
    batch_size: int = 32
    decay: Literal["step", "cosine"] = "step"
    step_epochs: int = 50
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    gamma: float = 0.0
    balanced: bool = False
    augment: str = "ec-stfl-video"
    precision: Literal["fp32", "bf16"] = "fp32"
    selection: Literal["last", "best"] = "last"
    select_by: str = "war"
    seed: int = 0

    @classmethod
    def published(cls, model: str) -> "FinetuneSettings":
        """The recipe of a model's paper. CFC-SP states no epochs, warm-up length or batch: those are ours."""
        if model == "swin_s":
            return cls(
                optimizer="adamw",
                lr=5e-4,
                weight_decay=0.05,
                epochs=20,
                decay="cosine",
                warmup_epochs=1.0,
                label_smoothing=0.1,
                balanced=True,
                augment="cfc-sp",
                select_by="macro_f1",
            )
        return cls(gamma=10.0, augment="ec-stfl-video" if model == "r3d_18" else "ec-stfl-image")

    def rate(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""
        if self.decay == "step":
            return self.lr * 0.1 ** (int(epoch) // self.step_epochs)
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def changed(self, **options: Any) -> "FinetuneSettings":
        """These settings with the options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


@dataclass(kw_only=True)
class FinetuneState:
    """What a training needs to go on after an epoch.

    Attributes
    ----------
    epoch
        Epochs done.
    model, optimizer
        State dicts.
    chosen, chosen_epoch, chosen_score
        Weights that the selection rule picked (empty while it picks the last epoch), their 1-based epoch and score.
    logits
        float32 [validation rows, classes] of the chosen epoch; NaN for rows without a face.
    history
        One record an epoch.
    settings
        Of the training that made this; a resume with others is refused.
    """

    epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Tensor] = field(default_factory=dict)
    chosen_epoch: int = 0
    chosen_score: float = -math.inf
    logits: Tensor | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write one file of tensors and plain values."""
        torch.save(vars(self), Path(folder) / CHECKPOINT)

    @classmethod
    def load(cls, folder: str | Path) -> "FinetuneState":
        """Read it back; nothing but tensors and plain values is accepted."""
        return cls(**torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True))


def check_settings(state: FinetuneState, spec: FrameModel, settings: FinetuneSettings) -> None:
    """Refuse to go on with other settings than a run began with; more epochs are fine only with step decay."""
    wanted = identity(spec, settings)
    changed = sorted(k for k in wanted if state.settings.get(k) != wanted[k])
    if settings.decay == "step" and changed == ["epochs"]:
        state.settings = wanted
    elif changed:
        raise ModelError(
            f"this run began with other settings ({', '.join(changed)}); give the same again, or another --run-name"
        )


def identity(spec: FrameModel, settings: FinetuneSettings) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain JSON values."""
    return json.loads(json.dumps({**asdict(settings), "model": asdict(spec)}))
