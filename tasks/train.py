"""Training of one PTH-Net (one direction, one fold), and the loop a Ray Train worker runs.

`train` needs no Ray: it is given a device table, a shard and the state to go on from, and calls back after every epoch.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pthnet.errors import ModelError
from pthnet.matmul import fastest_exact_matmul
from pthnet.metrics import scores
from pthnet.pth_net import PTHNet
from tasks.checkpoints import TrainState, load_state, save_state
from tasks.evaluate import logits_of
from tasks.feature_set import FeatureSet, Split
from tasks.sampling import DeviceTable, Shard, epoch_order
from tasks.shard_loss import ModelWithLoss, inverse_frequency
from tasks.train_settings import TrainSettings
from tasks.train_steps import Steps


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
    replay: bool = True,
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
    replay : bool
        Let a GPU record a step and replay it, see `tasks.train_steps`.

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
        # a tensor where steps are recorded, which would keep a number for ever
        lr=torch.tensor(settings.lr, device=device) if device.type == "cuda" else settings.lr,
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

    steps = Steps(module, model, average, table, settings, optimizer, shard, replay=replay)
    while state.epoch < settings.epochs and not (settings.patience and state.stale >= settings.patience):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(settings.rate(state.epoch))
            else:
                group["lr"] = settings.rate(state.epoch)
        labels = features.labels[split.train]
        order = epoch_order(split.train, labels, settings.balanced, settings.seed, state.epoch, 0)
        with fastest_exact_matmul(device):
            counted = steps.epoch(order, state.epoch, on_step)
        if shard.world > 1:
            torch.distributed.all_reduce(counted)
        sums, seen = counted.tolist(), len(order)
        seconds = time.perf_counter() - began
        if not np.isfinite(sums).all():
            raise ModelError(
                f"the loss is not finite in epoch {state.epoch + 1}; lower the learning rate "
                f"(now {settings.rate(state.epoch)})"
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
        state.logits["last"] = found["test"].clone()  # safetensors refuses shared memory


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker of a `TorchTrainer` runs.

    Parameters
    ----------
    config : dict
        features (object reference of a FeatureSet), split, settings, threads, gpus (of each worker; 0.5 where two
        trainings share one), progress (URI of a small JSON file that rank 0 keeps).
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

    def wrap(module: nn.Module) -> nn.Module:
        return prepare_model(module, parallel_strategy_kwargs={"gradient_as_bucket_view": True})

    def on_epoch(reached: TrainState) -> None:
        metrics = {key: value for key, value in reached.history[-1].items() if isinstance(value, int | float)}
        if shard.rank:
            ray.train.report(metrics)
            return
        write_atomic(config["progress"], json.dumps({**metrics, "epochs": settings.epochs}).encode())
        with tempfile.TemporaryDirectory() as directory:
            save_state(directory, reached)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))

    table = DeviceTable(features, device, share=config["gpus"] or 1.0)
    state = None
    try:
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as directory:
                state = load_state(directory)
        final = train(
            features, config["split"], settings, table=table, shard=shard, wrap=wrap, state=state, on_epoch=on_epoch
        )
    except ModelError as error:
        # Raised alike on every worker, and again by a retry: told to the driver, not counted as a failing machine.
        return {"refused": str(error)}
    return {"epoch": final.epoch, "selected_epoch": final.selected_epoch}
