"""How one PTH-Net is trained, checked when it is written down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pthnet.errors import ModelError
from pthnet.pth_net import PTHNetConfig
from pthnet.windows import LEVELS

SELECTIONS = ("last", "validation", "best-on-test")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one PTH-Net is trained; the defaults are those published for FERV39k.

    Parameters
    ----------
    model : PTHNetConfig
    epochs, milestones, decay : int, tuple of int, float
        The learning rate is multiplied by `decay` after each milestone (epochs done).
    lr, momentum, weight_decay : float
        Of SGD.
    batch : int
        Clips in a global batch, whatever the number of workers.
    noise : float
        Deviation of the Gaussian noise on every slot.
    levels : tuple of str
        Levels trained; the finest of them decides.
    loss : {"pyramid", "ecstfl"}
        "ecstfl" adds gamma times the EC-STFL loss on the pooled features of the finest level.
    class_weights, balanced : bool
        Weigh the cross entropy by inverse class frequency; draw classes equally often.
    ema : float
        Decay of a running average of the weights that is evaluated and kept instead of them; 0 is off.
    patience : int
        Stop after so many epochs without a better score by the selection rule; 0 is off.
    selection : {"last", "validation", "best-on-test"}
        Which epoch's weights are kept. The papers' protocol is best-on-test.
    select_by : {"uar", "war"}
        The score that `validation` and `best-on-test` compare.
    precision : {"fp32", "bf16"}
        bf16 runs the network under autocast; weights and loss stay fp32.
    seed : int
    """

    model: PTHNetConfig
    epochs: int = 20
    milestones: tuple[int, ...] = (5, 10, 15)
    decay: float = 0.1
    lr: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 32
    noise: float = 0.0005
    levels: tuple[str, ...] = LEVELS
    loss: str = "pyramid"
    gamma: float = 10.0
    class_weights: bool = False
    balanced: bool = False
    ema: float = 0.0
    patience: int = 0
    selection: str = "last"
    select_by: str = "uar"
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        checks: list[tuple[str, Any, Sequence[str]]] = [
            ("loss", self.loss, ("pyramid", "ecstfl")),
            ("selection", self.selection, SELECTIONS),
            ("select_by", self.select_by, ("uar", "war")),
            ("precision", self.precision, ("fp32", "bf16")),
            *(("levels", level, LEVELS) for level in self.levels or ("none",)),
        ]
        for name, value, allowed in checks:
            if value not in allowed:
                raise ModelError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}; found {value!r}")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1; found {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ModelError(f"ema is a decay in [0, 1), such as 0.999; found {self.ema}")
        if self.patience and self.selection == "last":
            raise ModelError("patience needs a score to watch: add --selection validation (or best-on-test)")

    @property
    def level(self) -> str:
        """The finest level trained, which decides."""
        return next(level for level in LEVELS if level in self.levels)

    def rate(self, epoch: int) -> float:
        """Learning rate in the epoch (0-based)."""
        return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    def to_dict(self) -> dict[str, Any]:
        """As JSON would give it back, for checkpoints and trackers."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
