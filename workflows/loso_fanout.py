"""Folds over the cluster: one Ray task trains the folds of one stack; what is finished is on disk and stays there."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.loso_data import Fold
    from tasks.loso_results import LosoStudy
    from tasks.loso_train import FoldOutcome

REPORT_S = 1.0  # how often a task tells where it is


@dataclass(frozen=True, kw_only=True)
class FanOut:
    """How folds share the cluster: `at_once` of them in a task that holds `cpus` and `gpus`."""

    at_once: int
    cpus: int
    gpus: float


def plan_fanout(
    folds: int,
    resources: Mapping[str, float],
    *,
    at_once: int | None,
    cpus: int,
    gpus: float | None,
    share: float = 1.0,
    fits: Callable[[float], int],
) -> FanOut:
    """Group the folds so that every slot of the cluster gets work.

    Parameters
    ----------
    folds
        Still to train.
    resources
        As `ray.cluster_resources()` gives them.
    at_once
        Folds in one task; None takes what `fits(gpus)` says, and fewer when slots would stay idle.
    cpus, gpus
        Of one task; a fraction lets several tasks share a GPU. gpus None takes `share` of one where there are any.
    """
    from cluster.errors import ClusterError

    total = {"CPU": resources.get("CPU", 0.0), "GPU": resources.get("GPU", 0.0)}
    if gpus is None:
        gpus = share if total["GPU"] >= 1 else 0.0
    if cpus < 1 or gpus < 0 or (at_once is not None and at_once < 1):
        raise ClusterError(
            "--cpus-per-task and --folds-at-once are at least 1, --gpus-per-task at least 0; "
            f"found {cpus}, {at_once} and {gpus:g}"
        )
    if cpus > total["CPU"] or gpus > total["GPU"]:
        raise ClusterError(
            f"a task asks for {cpus} CPUs and {gpus:g} GPUs, the cluster has {total['CPU']:g} and {total['GPU']:g}; "
            "lower --cpus-per-task or --gpus-per-task"
        )
    if at_once is None:
        slots = int(total["CPU"] // cpus)
        if gpus:
            slots = min(slots, int(total["GPU"] / gpus))
        at_once = max(1, min(fits(gpus), -(-folds // max(slots, 1))))
    return FanOut(at_once=at_once, cpus=cpus, gpus=gpus)


def group_folds(folds: Sequence["Fold"], at_once: int) -> list[list["Fold"]]:
    """Consecutive groups whose sizes differ by one at most."""
    count = -(-len(folds) // at_once)
    bounds = [len(folds) * number // count for number in range(count + 1)] if count else [0]
    return [list(folds[start:stop]) for start, stop in pairwise(bounds)]


def train_group(
    group: int,
    function: Callable[..., list["FoldOutcome"]],
    folds: Sequence["Fold"],
    settings: Any,
    plan: FanOut,
    board: Any,
    keep_weights: bool,
    *data: Any,
) -> list["FoldOutcome"]:
    """What one Ray task runs: train and test a group, telling the board about its epochs."""
    import torch

    from pthnet.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(plan.cpus)
    last = 0.0

    def report(epoch: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_S:
            last = time.monotonic()
            board.tell.remote(group, epoch, loss)

    device = "cuda" if plan.gpus else "cpu"
    return function(*data, folds, settings, device=device, report=report, keep_weights=keep_weights)


class Board:
    """Where tasks say how far they are; a Ray actor."""

    def __init__(self) -> None:
        self.said: dict[int, tuple[int, float]] = {}

    def tell(self, group: int, epoch: int, loss: float) -> None:
        """A group has finished an epoch."""
        self.said[group] = (epoch, loss)

    def read(self) -> dict[int, tuple[int, float]]:
        """Group -> (epoch, loss) of those that spoke."""
        return self.said


def fan_out(
    study: "LosoStudy",
    folds: Sequence["Fold"],
    function: Callable[..., list["FoldOutcome"]],
    data: Sequence[Any],
    settings: Any,
    plan: FanOut,
    out: Path,
    console: "Console",
    *,
    keep_weights: bool = False,
) -> Iterator["FoldOutcome"]:
    """Train the folds over the cluster; yields each when its result is on disk.

    A task that dies with its node is started again elsewhere. A group that fails does not stop the others; its error
    is raised when they are done, and the same command then trains what is missing.
    """
    import ray
    from ray.exceptions import RayTaskError

    from tasks.loso_results import save_outcome

    groups = group_folds(folds, plan.at_once)
    shared = [ray.put(part) for part in data]
    board: Any = ray.remote(num_cpus=0)(Board).remote()  # type: ignore[attr-defined]
    task: Any = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=3)(train_group)
    pending = {
        task.remote(number, function, group, settings, plan, board, keep_weights, *shared): number
        for number, group in enumerate(groups)
    }
    failed: list[BaseException] = []
    display = _Display(study, groups, plan, console)
    try:
        with display:
            while pending:
                done, _ = ray.wait(list(pending), timeout=REPORT_S)
                display.show(ray.get(board.read.remote()))
                for reference in done:
                    number = pending.pop(reference)
                    try:
                        outcomes = ray.get(reference)
                    except RayTaskError as error:
                        failed.append(error.cause if isinstance(error.cause, ValueError) else error)
                        continue
                    for outcome in outcomes:
                        save_outcome(out, outcome)
                    display.finish(number, outcomes)
                    yield from outcomes
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.kill(board)
    if failed:
        raise failed[0]


class _Display:
    """A bar for all folds and the loss of the groups at work on a terminal; elsewhere one line a finished group."""

    def __init__(
        self, study: "LosoStudy", groups: Sequence[Sequence["Fold"]], plan: FanOut, console: "Console"
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.groups, self.epochs = console, groups, study.epochs
        self.total, self.finished = len(study.folds), len(study.folds) - sum(map(len, groups))
        self.done: set[int] = set()
        note = TextColumn("{task.fields[note]}")
        self.progress = Progress(
            TextColumn("fold epochs"), BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self.bar = self.progress.add_task(
            "", total=self.total * self.epochs, completed=self.finished * self.epochs, note=""
        )
        where = f"{plan.gpus:g} GPU" if plan.gpus else f"{plan.cpus} CPU"
        tasks = f"{len(groups)} tasks of up to {plan.at_once} folds, {where} each"
        console.print(f"{self.total} folds, {self.finished} finished before; {tasks}", highlight=False)

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, said: Mapping[int, tuple[int, float]]) -> None:
        working = {number: state for number, state in said.items() if number not in self.done}
        epochs = self.finished * self.epochs + sum(epoch * len(self.groups[n]) for n, (epoch, _) in working.items())
        note = ", ".join(f"{self.groups[n][0].subject}: {loss:.3f}" for n, (_, loss) in list(working.items())[-3:])
        self.progress.update(self.bar, completed=epochs, note=note)

    def finish(self, number: int, outcomes: Sequence["FoldOutcome"]) -> None:
        self.done.add(number)
        for outcome in outcomes:
            self.finished += 1
            if self.console.is_terminal:
                continue
            self.console.print(
                f"fold {self.finished}/{self.total} {outcome.subject}: loss {outcome.losses[-1]:.4f}, "
                f"{len(outcome.test)} samples tested, {outcome.seconds:.1f} s",
                highlight=False,
            )
