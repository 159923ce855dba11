"""Train a frame model: EC-STFL's clips and images with its loss, CFC-SP's coarse and negative classifiers.

`fine_tune` is plain PyTorch over an iterator of batches; `train_loop` is what every worker of a Ray TorchTrainer runs.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pthnet.allocator import keep_freed_memory
from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from pthnet.losses import ecstfl_loss
from pthnet.matmul import exact_float32
from pthnet.metrics import scores
from tasks.finetune_state import FinetuneSettings, FinetuneState, check_settings, identity
from tasks.frame_batches import FrameBatch, FrameLoader, ray_batches, upload


@dataclass(frozen=True)
class Workers:
    """The workers that train together, of which this is one."""

    rank: int = 0
    world: int = 1

    def gather(self, mine: Any) -> list[Any]:
        """Every worker's object, in the order of ranks."""
        if self.world == 1:
            return [mine]
        every: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(every, mine)
        return every

    def align(self, model: nn.Module) -> None:
        """Give every worker the first one's batch statistics: those are what is saved, so those are evaluated."""
        for buffer in model.buffers() if self.world > 1 else ():
            torch.distributed.broadcast(buffer, 0)


class WithFeatures(nn.Module):
    """A frame model that gives logits and pooled features in one pass, as a module that DDP can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.features(pixels)  # type: ignore[operator]
        return self.model.classify(features), features  # type: ignore[operator]


def frame_loss(
    logits: Tensor, features: Tensor, labels: Tensor, *, gamma: float, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """CE + gamma * EC-STFL over the samples that have a label: (total, CE, EC-STFL).

    A batch without any label gives zeros that still carry gradients, so that every worker takes part in the step.

    Parameters
    ----------
    logits, features
        [B, classes] and [B, D], on the device.
    labels
        int64 [B], -1 for none. On the host: to ask a GPU which samples have one would wait for all that it has to do.
    """
    known = torch.nonzero(labels >= 0).squeeze(1)
    if not len(known):
        none = (logits.sum() + features.sum()) * 0.0
        return none, none.detach(), none.detach()
    if len(known) < len(labels):
        rows = upload(known.numpy(), logits.device)
        logits, features, labels = logits[rows], features[rows], labels[known]
    target = upload(labels.numpy(), logits.device)
    ce = F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
    if gamma == 0.0:
        return ce, ce.detach(), torch.zeros_like(ce)
    spread = ecstfl_loss(features, target)
    return ce + gamma * spread, ce.detach(), spread.detach()


def fine_tune(
    model: nn.Module,
    spec: FrameModel,
    settings: FinetuneSettings,
    loader: FrameLoader,
    batches: Iterator[FrameBatch],
    *,
    device: torch.device | str = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    state: FinetuneState | None = None,
    on_epoch: Callable[[FinetuneState], None] = lambda state: None,
    workers: Workers | None = None,
) -> FinetuneState:
    """Train from where `state` stands until the last epoch.

    Parameters
    ----------
    model
        Fresh or pretrained; its weights are replaced when `state` holds some.
    loader
        Whose batches these are: gives the schedule and the validation labels.
    batches
        All batches of this worker in order, from epoch `state.epoch` on.
    wrap
        Puts DDP around the module.
    on_epoch
        Called after every epoch.
    workers
        Who else trains; None: nobody.

    Raises
    ------
    ModelError
        The loss is not finite, no sample could be read, or the state was made with other settings.
    """
    workers = workers or Workers()
    state = state or FinetuneState(settings=identity(spec, settings))
    check_settings(state, spec, settings)
    if state.model:
        model.load_state_dict(state.model)
    model.to(device)
    if spec.model == "resnet18":
        # The order that convolutions over images are quickest in.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = wrap(WithFeatures(model))
    device = torch.device(device)
    optimizer = _optimizer(model, settings, fused=device.type == "cuda")
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    schedule = loader.schedule
    for epoch in range(state.epoch, settings.epochs):
        began, waited = time.perf_counter(), 0.0
        # loss, CE, EC-STFL, hits; they stay on the device, which would else be waited for at every step
        totals, taught = torch.zeros(4, dtype=torch.float64, device=device), 0
        failures: list[str] = []
        steps = schedule.steps(epoch)
        # what the network draws (stochastic depth) follows from the epoch too, so that a resumed run draws the same
        torch.manual_seed(1_000_003 * settings.seed + 1009 * epoch + workers.rank)
        module.train()
        for step in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            failures += batch.failures
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(epoch + step / steps)
            with _precision(device.type, settings):
                logits, features = module(spec.pixels(upload(batch.frames, device)))
            labels = torch.from_numpy(batch.labels)
            total, ce, spread = frame_loss(
                logits, features, labels, gamma=settings.gamma, label_smoothing=settings.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            known = int((batch.labels >= 0).sum())
            hits = (logits.detach().argmax(1) == upload(batch.labels, device)).sum()  # no class is -1
            totals += torch.stack([total.detach() * known, ce * known, spread * known, hits]).double()
            taught += known
        sums = torch.cat([totals.cpu(), torch.tensor([taught], dtype=torch.float64)])  # waits for the last step
        seconds = time.perf_counter() - began
        every = workers.gather((sums, failures))
        sums = torch.stack([part for part, _ in every]).sum(0)
        failures = [text for _, texts in every for text in texts]
        record = _record(sums, failures, settings, epoch, seconds, waited, steps * schedule.batch_size * schedule.world)
        logits = gather_logits(model, spec, settings, loader, batches, epoch, device=device, workers=workers)
        state.epoch, state.model = epoch + 1, {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
        state.optimizer = optimizer.state_dict()
        _select(state, record, logits, loader.validation_labels, settings, len(spec.classes))
        state.history.append(record)
        on_epoch(state)
    return state


def gather_logits(
    model: nn.Module,
    spec: FrameModel,
    settings: FinetuneSettings,
    loader: FrameLoader,
    batches: Iterator[FrameBatch],
    epoch: int,
    *,
    device: torch.device | str = "cpu",
    workers: Workers | None = None,
) -> np.ndarray:
    """Logits float32 [validation rows, classes] of one pass over the validation batches; NaN for rows not in it.

    On a GPU in true float32, as a prediction with the weights that are kept.
    """
    workers = workers or Workers()
    workers.align(model)
    model.eval()
    found = []
    pages = [page for page in loader.schedule.pages() if not page.training and page.epoch == epoch]
    kind = torch.device(device).type
    with torch.inference_mode(), _precision(kind, settings), exact_float32(device):
        for page in pages:
            for _ in loader.schedule.batches(page):
                batch = next(batches)
                logits = model(spec.pixels(upload(batch.frames, device))).float().cpu().numpy()
                found.append((batch.index, np.where(batch.readable[:, None], logits, np.nan)))
    whole = np.full((len(loader.validation), len(spec.classes)), np.nan, np.float32)
    for part in workers.gather(found):
        for index, logits in part:
            whole[index] = logits
    return whole


def _optimizer(model: nn.Module, settings: FinetuneSettings, *, fused: bool) -> torch.optim.Optimizer:
    """The settings' optimizer; `fused` updates all weights by one kernel."""
    lr, decay, kernel = settings.lr, settings.weight_decay, fused or None
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay, fused=kernel)
    # norms, biases and position tables are not decayed, as Swin's own recipe has it
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias_table")]
    decayed = [p for n, p in model.named_parameters() if not (p.ndim < 2 or n.endswith("bias_table"))]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=kernel)


def _precision(kind: str, settings: FinetuneSettings) -> Any:
    return torch.autocast(kind, torch.bfloat16) if settings.precision == "bf16" else nullcontext()


def _record(
    sums: Tensor,
    failures: Sequence[str],
    settings: FinetuneSettings,
    epoch: int,
    seconds: float,
    waited: float,
    seen: int,
) -> dict[str, float]:
    if not torch.isfinite(sums).all():
        raise ModelError(
            f"the loss is not finite in epoch {epoch + 1}; lower the learning rate (now {settings.rate(epoch)})"
        )
    count = float(sums[4])
    if count == 0:
        said = f"; the first: {failures[0]}" if failures else ""
        raise ModelError(f"no training sample could be read in epoch {epoch + 1}{said}; check the list and its root")
    names = ("loss", "ce", "ecstfl", "train_war")
    record = {name: float(value) / count for name, value in zip(names, sums.tolist(), strict=False)}
    record |= {"epoch": epoch + 1, "lr": settings.rate(epoch), "seconds": seconds, "samples_per_s": seen / seconds}
    return record | {"waited_share": waited / seconds, "unreadable": len(failures)}


def _select(
    state: FinetuneState,
    record: dict[str, float],
    logits: np.ndarray,
    labels: np.ndarray,
    settings: FinetuneSettings,
    num_classes: int,
) -> None:
    """Score the epoch, and keep its weights when the selection rule says so."""
    scored = (labels >= 0) & ~np.isnan(logits).any(axis=1)
    if scored.any():
        reached = scores(labels[scored], logits[scored].argmax(1), num_classes)
        record |= {f"validation_{name}": float(getattr(reached, name)) for name in ("war", "uar", "macro_f1")}
    score = record.get(f"validation_{settings.select_by}", -math.inf) if settings.selection == "best" else math.inf
    if settings.selection == "last" or score > state.chosen_score or not state.chosen_epoch:
        state.chosen_epoch, state.logits = state.epoch, torch.from_numpy(logits)
        state.chosen_score = record.get(f"validation_{settings.select_by}", math.nan)
        if settings.selection == "best":
            state.chosen = {name: tensor.clone() for name, tensor in state.model.items()}


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker of a `TorchTrainer` runs.

    What a user can put right is returned under "refused": an exception would be retried.

    Parameters
    ----------
    config
        loader (object reference), spec, settings, init (state dict to start from, or None), cpus (tasks that make
        batches for each worker), cpus_each (that Ray sets aside for a task), threads, progress (URI of a JSON file of
        the history so far, kept by rank 0).
    """
    import json
    import tempfile

    import ray
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from storage.files import write_atomic

    keep_freed_memory()
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    spec: FrameModel = config["spec"]
    settings: FinetuneSettings = config["settings"]
    state = None
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = FinetuneState.load(folder)
    whole: FrameLoader = ray.get(config["loader"])
    first = state.epoch if state else 0
    schedule = replace(whole.schedule, rank=rank, world=world, first_epoch=first, epochs=settings.epochs)
    loader = replace(whole, schedule=schedule)
    torch.manual_seed(settings.seed)
    model = spec.build()
    if config["init"] and state is None:
        model.load_state_dict(config["init"])

    def report(state: FinetuneState) -> None:
        if rank:
            ray.train.report(state.history[-1])
            return
        with tempfile.TemporaryDirectory() as folder:
            state.save(folder)
            ray.train.report(state.history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
        write_atomic(config["progress"], json.dumps(state.history).encode())

    batches = ray_batches(loader, cpus=config["cpus"], cpus_each=config["cpus_each"])
    try:
        if state:
            check_settings(state, spec, settings)
        fine_tune(
            model, spec, settings, loader, batches,
            device=get_device(), wrap=prepare_model, state=state, on_epoch=report, workers=Workers(rank, world),
        )  # fmt: skip
    except ModelError as error:
        return {"refused": str(error)}
    return {}
