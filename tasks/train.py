"""Training of one PTH-Net (one direction, one fold), and the loop a Ray Train worker runs.

`train` needs no Ray: it is given a device table, a shard and the state to go on from, and calls back after every epoch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pthnet.errors import ModelError
from pthnet.losses import ecstfl_loss, pyramid_loss
from pthnet.metrics import scores
from pthnet.pth_net import PTHNet, PTHNetConfig
from pthnet.windows import LEVELS
from tasks.checkpoints import TrainState, load_state, save_state
from tasks.evaluate import logits_of
from tasks.feature_set import FeatureSet, Split
from tasks.sampling import DeviceTable, Pyramid, Shard, batches, epoch_order, generator_for

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


class ModelWithLoss(nn.Module):
    """What DDP wraps: a network and the loss of one shard of a global batch, scaled so that the mean over workers is the batch's."""

    def __init__(self, model: PTHNet, settings: TrainSettings, class_weights: Tensor | None, shard: Shard) -> None:
        super().__init__()
        self.model, self.settings, self.shard = model, settings, shard
        self.class_weights = class_weights

    def forward(self, pyramid: Pyramid, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Loss to differentiate, and [total, CE, KL middle, KL low, extra, hits] as sums over this shard's clips.

        Parameters
        ----------
        pyramid, target
            The shard's clips; one clip of no weight when the shard is empty.
        count : int
            Clips in the global batch.
        """
        settings, shard = self.settings, self.shard
        mine = shard.slice(count)
        rows = mine.stop - mine.start
        wants_features = settings.loss == "ecstfl"
        with torch.autocast(target.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            answer = self.model(pyramid, with_features=wants_features)
        logits, features = answer if wants_features else (answer, None)
        logits = {level: value.float() for level, value in logits.items()}
        finest = logits[settings.level]
        total, parts = pyramid_loss(logits, target)
        if self.class_weights is not None:
            # The mean of w * CE over the batch, with weights whose mean over the training clips is 1.
            each = F.cross_entropy(finest, target, reduction="none")
            total = total + ((self.class_weights[target] - 1) * each).mean()
        loss = total * (rows * shard.world / count)
        extra = total.new_zeros(())
        if features is not None:
            extra = settings.gamma * _global_ecstfl(features[settings.level].float(), target, count, shard)
            loss = loss + extra
        with torch.no_grad():
            zero = total.new_zeros(())
            hits = (finest.argmax(1) == target).sum()
            named = [parts.get(name, zero) for name in ("ce", "kl_middle", "kl_low")]
            share = torch.stack([total, *named, zero, zero]) * rows
            share[4], share[5] = extra * rows, hits if rows else 0
            share[0] += share[4]
        return loss, share


def _global_ecstfl(features: Tensor, target: Tensor, count: int, shard: Shard) -> Tensor:
    """EC-STFL over the whole batch: pairs span workers, so features are gathered with their gradient."""
    if shard.world == 1:
        return ecstfl_loss(features, target)
    from torch.distributed.nn.functional import all_gather

    lengths = [(part := Shard(rank, shard.world).slice(count)).stop - part.start for rank in range(shard.world)]
    spare = max(lengths) - lengths[shard.rank] if lengths[shard.rank] else max(lengths) - 1
    gathered = all_gather(F.pad(features, (0, 0, 0, spare)))
    labels = [torch.empty(max(lengths), dtype=target.dtype, device=target.device) for _ in lengths]
    torch.distributed.all_gather(labels, F.pad(target, (0, spare)))
    return ecstfl_loss(
        torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)]),
        torch.cat([part[:n] for part, n in zip(labels, lengths, strict=True)]),
    )


def build_model(settings: TrainSettings, features: FeatureSet, rows: np.ndarray) -> PTHNet:
    """A fresh network from the settings' seed, standardised by the training clips when the settings say so."""
    if features.dim != settings.model.in_dim:
        raise ModelError(
            f"the features have {features.dim} numbers a window and the model expects {settings.model.in_dim}; "
            "set the backbone's dimension, or name another extractor"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = PTHNet(settings.model)
    if settings.model.standardize:
        mean, deviation = features.standardization(rows)
        model.set_standardization(torch.from_numpy(mean), torch.from_numpy(deviation))
    idle = set(model.idle_parameters(settings.levels))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in idle)
    return model


def inverse_frequency(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class weights float32 [classes] proportional to 1 / frequency, with mean 1 over the labels given; 0 for absent classes."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights.astype(np.float32)


def train(
    features: FeatureSet,
    split: Split,
    settings: TrainSettings,
    *,
    table: DeviceTable,
    shard: Shard | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    state: TrainState | None = None,
    on_epoch: Callable[[TrainState], None] = lambda state: None,
    on_step: Callable[[float], None] | None = None,
) -> TrainState:
    """Train until the last epoch, or until patience ends.

    Parameters
    ----------
    features, table
        The same clips, on the host and on the device.
    split : Split
    shard : Shard, optional
        This worker's part of every batch.
    wrap : callable
        Puts DDP around the module (identity for one worker).
    state : TrainState, optional
        Go on from here; the result is the same as without the interruption.
    on_epoch : callable
        Called after every epoch with the state so far.
    on_step : callable, optional
        Called with the loss of every step (this worker's share of it); costs a device synchronisation.

    Raises
    ------
    ModelError
        When the loss is no longer finite, or the state was made with other settings.
    """
    shard, device = shard or Shard(), table.device
    classes = settings.model.num_classes
    model = build_model(settings, features, split.train).to(device)
    weights = None
    if settings.class_weights:
        weights = torch.from_numpy(inverse_frequency(features.labels[split.train], classes)).to(device)
    state = state or TrainState(settings=settings.to_dict())
    if state.settings != settings.to_dict():
        changed = sorted(key for key in settings.to_dict() if state.settings.get(key) != settings.to_dict()[key])
        raise ModelError(
            f"this run began with other settings ({', '.join(changed)}); keep them, or give another --run-name"
        )
    if state.model:
        model.load_state_dict(state.model)
    module = wrap(ModelWithLoss(model, settings, weights, shard)).train()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        [p for _, p in named],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    for name, parameter in named:
        if name in state.momentum:
            optimizer.state[parameter]["momentum_buffer"] = state.momentum[name].to(device).clone()
    average: PTHNet | None = None
    if settings.ema:
        average = PTHNet(settings.model).to(device)
        average.load_state_dict(state.ema or model.state_dict())

    while state.epoch < settings.epochs and not (settings.patience and state.stale >= settings.patience):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(state.epoch)
        sums, seen = _train_epoch(
            module, model, average, table, features, split, settings, optimizer, shard, state.epoch, on_step
        )
        seconds = time.perf_counter() - began
        if not np.isfinite(sums).all():
            raise ModelError(
                f"the loss is not finite in epoch {state.epoch + 1}; lower the learning rate (now {settings.rate(state.epoch)})"
            )
        names = ("loss", "ce", "kl_middle", "kl_low", settings.loss, "train_war")
        record = {name: value / seen for name, value in zip(names, sums, strict=True) if name != "pyramid"}
        record |= {
            "epoch": state.epoch + 1,
            "lr": settings.rate(state.epoch),
            "seconds": seconds,
            "clips_per_s": seen / seconds,
        }

        state.epoch += 1
        state.model = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        state.momentum = {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in named}
        state.ema = dict(average.state_dict()) if average is not None else {}
        _score_epoch(state, record, average or model, table, features, split, settings, shard)
        state.history.append(record)
        on_epoch(state)
    return state


def _train_epoch(
    module: nn.Module,
    model: PTHNet,
    average: PTHNet | None,
    table: DeviceTable,
    features: FeatureSet,
    split: Split,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    shard: Shard,
    epoch: int,
    on_step: Callable[[float], None] | None,
) -> tuple[list[float], int]:
    """One pass over the training clips; sums over all workers of what `ModelWithLoss` counts, and the number of clips."""
    device = table.device
    generator = generator_for(device, settings.seed, epoch, 1)
    order = epoch_order(split.train, features.labels[split.train], settings.balanced, settings.seed, epoch, 0)
    drops = [part for part in model.modules() if hasattr(part, "draws")] if settings.model.drop_path else []
    sums = torch.zeros(6, device=device)
    for chosen in batches(order, settings.batch):
        rows = torch.from_numpy(chosen).to(device, non_blocking=True)
        mine = shard.slice(len(chosen))
        keep = mine if mine.stop > mine.start else slice(0, 1)  # an empty shard still takes part in DDP's reductions
        pyramid = table.pyramid(rows, settings.levels, generator=generator, noise=settings.noise, keep=keep)
        if drops:
            draws = torch.rand((len(drops), len(chosen), len(settings.levels)), generator=generator, device=device)
            for part, drawn in zip(drops, draws, strict=True):
                part.draws = drawn[keep]
        loss, share = module(pyramid, table.labels[rows[keep]], len(chosen))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums += share
        if average is not None:
            _blend(average, model, settings.ema)
        if on_step is not None:
            on_step(float(loss.detach()))
    for part in drops:
        part.draws = None
    if shard.world > 1:
        torch.distributed.all_reduce(sums)
    return sums.tolist(), len(order)


@torch.no_grad()
def _blend(average: PTHNet, model: PTHNet, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(new)


def _score_epoch(
    state: TrainState,
    record: dict[str, Any],
    model: PTHNet,
    table: DeviceTable,
    features: FeatureSet,
    split: Split,
    settings: TrainSettings,
    shard: Shard,
) -> None:
    """Evaluate the epoch on the validation and test clips, and keep its weights when the selection rule says so."""
    found: dict[str, Tensor] = {}
    for name, rows in (("validation", split.validation), ("test", split.test)):
        if len(rows):
            found[name] = logits_of(
                model, table, rows, level=settings.level, shard=shard, precision=settings.precision
            )[0]
            reached = scores(features.labels[rows], found[name].numpy().argmax(1), settings.model.num_classes)
            record |= {f"{name}_war": float(reached.war), f"{name}_uar": float(reached.uar)}
    watched = {"last": None, "validation": "validation", "best-on-test": "test"}[settings.selection]
    score = float(state.epoch) if watched is None else record[f"{watched}_{settings.select_by}"]
    if score > state.selected_score:
        state.selected_score, state.selected_epoch, state.stale = score, state.epoch, 0
        state.logits |= found
        if watched is not None:
            state.selected = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    else:
        state.stale += 1
    if watched is not None and "test" in found:
        state.logits["last"] = found["test"]


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker of a `TorchTrainer` runs.

    Parameters
    ----------
    config : dict
        features (object reference of a FeatureSet), split, settings, threads, progress (URI of a small JSON file that rank 0 keeps).
    """
    import json
    import tempfile

    import ray
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from storage.files import write_atomic

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    features: FeatureSet = ray.get(config["features"])
    settings: TrainSettings = config["settings"]
    device = get_device()

    state = None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state = load_state(directory)

    def wrap(module: nn.Module) -> nn.Module:
        return prepare_model(
            module, parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True}
        )

    def on_epoch(reached: TrainState) -> None:
        metrics = {key: value for key, value in reached.history[-1].items() if isinstance(value, int | float)}
        if shard.rank:
            ray.train.report(metrics)
            return
        write_atomic(config["progress"], json.dumps({**metrics, "epochs": settings.epochs}).encode())
        with tempfile.TemporaryDirectory() as directory:
            save_state(directory, reached)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))

    table = DeviceTable(features, device)
    try:
        final = train(
            features, config["split"], settings, table=table, shard=shard, wrap=wrap, state=state, on_epoch=on_epoch
        )
    except ModelError as error:
        # Raised alike on every worker, and by a retry again: handed to the driver instead of counted as a failure of the machine.
        return {"refused": str(error)}
    return {"epoch": final.epoch, "selected_epoch": final.selected_epoch}
