"""Train the HTNets of some folds: stacked, all at once, or one after another where they cannot be stacked.

Both ways see the same initial weights and the same batches, so they give the same losses; benchmarks/loso.py compares
them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig
from pthnet.htnet_stack import HTNetStack, stack_of
from pthnet.matmul import fastest_exact_matmul, float32_on_cuda
from tasks.loso_data import Fold

Report = Callable[[int, float], None]  # epoch (from 1), mean loss of the group


@dataclass(frozen=True, kw_only=True)
class LosoSettings:
    """How every fold is trained; the defaults are the published ones.

    Parameters
    ----------
    config
        The model.
    epochs, batch_size, learning_rate
        Adam without weight decay, cross entropy.
    seed
        Decides every fold's initial weights and batches.
    selection
        "last": the last epoch predicts. "best-on-test": the first epoch with the most right answers on the left-out
        subject, as the published scores do it; such scores are chosen on test data.
    tf32
        Let a GPU that has TF32 round the factors of all matrix products and convolutions to its 10 bits of mantissa,
        several times faster than float32; False: float32 everywhere. A CPU ignores it.
    """

    config: HTNetConfig = field(default_factory=HTNetConfig)
    epochs: int = 800
    batch_size: int = 256
    learning_rate: float = 5e-5
    seed: int = 0
    selection: Literal["last", "best-on-test"] = "last"
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ModelError(
                f"epochs and batch_size must be at least 1 and the learning rate above 0; "
                f"found {self.epochs}, {self.batch_size}, {self.learning_rate}"
            )
        if self.selection not in ("last", "best-on-test"):
            raise ModelError(f"selection is {self.selection!r}; choose last or best-on-test")

    @property
    def stacks(self) -> bool:
        """True when folds can train as one stack: every attention block holds one token."""
        config = self.config
        single = all(config.block_side(level) == 1 for level in range(len(config.depths)))
        return single and config.attention == "block" and not config.dropout


@dataclass(frozen=True)
class FoldOutcome:
    """What a fold left: its test predictions and how it got there.

    Attributes
    ----------
    logits
        float32 [n, classes] of the test rows, in their order, at the selected epoch.
    losses
        float64 [epochs], mean training loss of every epoch.
    epoch
        The selected epoch, from 1.
    seconds
        Wall time divided by the folds that trained together.
    weights
        Published-layout state dict at the LAST epoch, None unless asked for.
    """

    number: int
    subject: str
    test: NDArray[np.int64]
    logits: NDArray[np.float32]
    losses: NDArray[np.float64]
    epoch: int
    seconds: float
    weights: dict[str, Any] | None = None


def fold_seed(seed: int, fold: int) -> int:
    """Seed of a fold's initial weights."""
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])


def epoch_order(seed: int, fold: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order in which a fold visits its training samples; any grouping of folds gives the same."""
    return np.random.default_rng([seed, fold, epoch]).permutation(size)


def folds_at_once(config: HTNetConfig, device: torch.device, batch_size: int = 256) -> int:
    """Folds in one stack: one on a CPU, on a GPU as many as `bytes_of_fold` fits into three quarters of its memory.

    On a CPU stacks of two and four are no faster, as their layers no longer stay in the cache, and resume coarser.
    """
    if device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, int(0.75 * memory / bytes_of_fold(config, batch_size)))


def bytes_of_fold(config: HTNetConfig, batch_size: int) -> int:
    """Memory that one more fold in a stack takes: 2.3 GB with the published sizes.

    Four times what is trained (weights, gradients, Adam's two moments), and what a step keeps for its way back, in
    floats per token and channel: 15 of a layer (x and its norm, plain and scaled, twice each; v; the hidden layer
    before and after GELU, four each; the sum before the perceptron counts as its x), 11 of a 3x3 convolution (three
    neighbours; output and its norm, plain and scaled, and the pooled maps, two each).
    """
    with torch.device("meta"):
        named = HTNet(config).named_parameters()
        trained = sum(p.numel() // 3 if ".to_qkv." in name else p.numel() for name, p in named)
    kept = 0
    for level, depth in enumerate(config.depths):
        last = level == len(config.depths) - 1
        kept += (config.grid >> level) ** 2 * (config.dim << level) * (15 * depth + (0 if last else 11))
    return 4 * (4 * trained + batch_size * kept)


def train_folds(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: Sequence[Fold],
    settings: LosoSettings,
    *,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    keep_weights: bool = False,
) -> list[FoldOutcome]:
    """Train and test the models of some folds.

    Parameters
    ----------
    images
        [N, 3, S, S], 0-255, all samples.
    labels
        [N].
    folds
        They train as one stack when `settings.stacks`; those with another number of batches in a stack of their own,
        since an empty batch would still be a step of Adam.
    device
        Where.
    report
        Called after every epoch.
    keep_weights
        Also return the weights.
    """
    device = torch.device(device)
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    began = time.perf_counter()
    runs: dict[int, Run] = {}
    with fastest_exact_matmul(device):
        if settings.stacks:
            batches = [-(-len(fold.train) // settings.batch_size) for fold in folds]
            for number in sorted(set(batches)):
                together = [fold for fold, count in zip(folds, batches, strict=True) if count == number]
                with float32_on_cuda(device, tf32=settings.tf32):
                    done = _train_stack(x, y, together, settings, report, keep_weights)
                runs.update(zip((fold.number for fold in together), done, strict=True))
        else:
            for fold in folds:
                runs[fold.number] = train_alone(x, y, fold, settings, report, keep_weights)
    seconds = (time.perf_counter() - began) / len(folds)
    return [_outcome(fold, runs[fold.number], seconds) for fold in folds]


@dataclass
class Run:
    """A fold while it trains."""

    losses: list[float] = field(default_factory=list)
    logits: NDArray[np.float32] | None = None
    right: int = -1
    epoch: int = 0
    weights: dict[str, Any] | None = None

    def see(self, epoch: int, logits: Tensor, target: Tensor, *, always: bool) -> None:
        """Take an epoch's test logits when they are to count."""
        right = int((logits.argmax(1) == target).sum())
        if always or right > self.right:
            self.logits, self.right, self.epoch = logits.detach().float().cpu().numpy(), right, epoch


def _outcome(fold: Fold, run: Run, seconds: float) -> FoldOutcome:
    assert run.logits is not None
    losses = np.array(run.losses)
    if not np.isfinite(losses).all():
        raise ModelError(f"the loss of subject {fold.subject} is no longer finite; lower --lr")
    return FoldOutcome(fold.number, fold.subject, fold.test, run.logits, losses, run.epoch, seconds, run.weights)


def train_alone(
    images: Tensor, labels: Tensor, fold: Fold, settings: LosoSettings, report: Report | None = None, keep: bool = False
) -> Run:
    """`train_plainly` with the precision on a GPU that the settings name."""
    with float32_on_cuda(images.device, tf32=settings.tf32):
        return train_plainly(images, labels, fold, settings, report, keep)


def train_plainly(
    images: Tensor, labels: Tensor, fold: Fold, settings: LosoSettings, report: Report | None = None, keep: bool = False
) -> Run:
    """One model, the plain way: the published module, PyTorch's Adam and its precision as they come."""
    model = HTNet.seeded(settings.config, fold_seed(settings.seed, fold.number)).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    test = torch.from_numpy(fold.test).to(images.device)
    run = Run()
    for epoch in range(settings.epochs):
        model.train()
        order = torch.from_numpy(fold.train[epoch_order(settings.seed, fold.number, epoch, len(fold.train))])
        total = torch.zeros((), device=images.device)
        for rows in order.to(images.device).split(settings.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        run.losses.append(total.item() / len(order))
        if epoch == settings.epochs - 1 or settings.selection == "best-on-test":
            model.eval()
            with torch.inference_mode():
                run.see(epoch + 1, model(images[test]), labels[test], always=settings.selection == "last")
        if report:
            report(epoch + 1, run.losses[-1])
    if keep:
        run.weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return run


def _train_stack(
    images: Tensor, labels: Tensor, folds: Sequence[Fold], settings: LosoSettings, report: Report | None, keep: bool
) -> list[Run]:
    """Several models as one, with masked losses where their last batches differ in size."""
    device, models = images.device, len(folds)
    stack = stack_of(settings.config, [fold_seed(settings.seed, fold.number) for fold in folds], device)
    optimizer = torch.optim.Adam(stack.parameters.values(), lr=settings.learning_rate, fused=True)
    patches = stack.patches(images)
    runs = [Run() for _ in folds]
    sizes = np.array([len(fold.train) for fold in folds])
    for epoch in range(settings.epochs):
        total = torch.zeros(models, device=device)
        for index, weight in _batches_on(device, folds, settings, epoch):  # [G, B] each
            optimizer.zero_grad()
            each = F.cross_entropy(stack(patches[index]).flatten(0, 1), labels[index].flatten(), reduction="none")
            losses = (each.reshape(models, -1) * weight).sum(1)  # a mean over each model's own batch
            losses.sum().backward()
            optimizer.step()
            total += losses.detach() * (weight > 0).sum(1)
        means = total.cpu().double().numpy() / sizes
        for run, mean in zip(runs, means, strict=True):
            run.losses.append(float(mean))
        if epoch == settings.epochs - 1 or settings.selection == "best-on-test":
            _test_stack(stack, patches, labels, folds, runs, epoch + 1, always=settings.selection == "last")
        if report:
            report(epoch + 1, float(means.mean()))
    if keep:
        for number, run in enumerate(runs):
            run.weights = stack.state_dict(number)
    return runs


def _batches_on(
    device: torch.device, folds: Sequence[Fold], settings: LosoSettings, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`_batches` on the device, an epoch's in one copy of the rows and one of the weights."""
    parts = list(_batches(folds, settings, epoch))
    sizes = [rows.size for rows, _ in parts]
    flat = [np.concatenate([part.ravel() for part in column]) for column in zip(*parts, strict=True)]
    rows, weights = (_upload(column, device).split(sizes) for column in flat)
    for index, weight in zip(rows, weights, strict=True):
        yield index.view(len(folds), -1), weight.view(len(folds), -1)


def _upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """On a GPU without waiting for it: from pinned memory, which PyTorch holds until the copy is done."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _batches(
    folds: Sequence[Fold], settings: LosoSettings, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Rows [G, B] and their weights in the loss: 1/(own batch size), 0 where a fold has fewer samples left."""
    orders = [fold.train[epoch_order(settings.seed, fold.number, epoch, len(fold.train))] for fold in folds]
    for start in range(0, max(len(order) for order in orders), settings.batch_size):
        yield _padded([order[start : start + settings.batch_size] for order in orders])


def _padded(parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    width = max(len(part) for part in parts)
    rows = np.zeros((len(parts), width), np.int64)
    weights = np.zeros((len(parts), width), np.float32)
    for number, part in enumerate(parts):
        rows[number, : len(part)] = part
        weights[number, : len(part)] = 1.0 / max(len(part), 1)
    return rows, weights


def _test_stack(
    stack: HTNetStack,
    patches: Tensor,
    labels: Tensor,
    folds: Sequence[Fold],
    runs: Sequence[Run],
    epoch: int,
    *,
    always: bool,
) -> None:
    rows, _ = _padded([fold.test for fold in folds])
    with torch.no_grad():
        logits = stack(patches[torch.from_numpy(rows).to(patches.device)])
    for number, (fold, run) in enumerate(zip(folds, runs, strict=True)):
        target = labels[torch.from_numpy(fold.test).to(labels.device)]
        run.see(epoch, logits[number, : len(fold.test)], target, always=always)
