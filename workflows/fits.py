"""Many trainings at once: a TorchTrainer each, side by side within the cluster's resources, in one display."""

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.waiting import waiting_said

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.checkpoints import TrainState
    from tasks.feature_set import Split
    from tasks.train_settings import TrainSettings

MOST_THREADS = 8  # past this a step of batch 32 gains nothing
MOST_A_GPU = 4  # trainings of one worker on a GPU: the kernels of a step are too small to fill it
# Ray Train asks its workers every 2 s and takes one report at a time: short epochs would wait for it.
POLL_S = "0.25"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training: a direction of a fold.

    Attributes
    ----------
    name : str
        "fold-1-forward"; its folder below the run's.
    features : object reference of a FeatureSet
    """

    name: str
    features: Any
    split: "Split"
    settings: "TrainSettings"


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How trainings share the cluster: `at_once` of them, each of `workers` with `cpus` and `gpus` apiece.

    `gpus` is 0, 1, or for trainings that share a GPU their part of it.
    """

    workers: int
    cpus: float
    gpus: float
    at_once: int


def plan_fits(count: int, nodes: Sequence[Mapping[str, float]], workers: int | None = None) -> FitPlan:
    """Share out what the nodes of a cluster have among `count` trainings.

    With GPUs: one worker a training unless asked for more, as the network is small and folds are many; it has a GPU for
    itself, or where there are more trainings than GPUs shares one with up to three others, each with a core to launch
    kernels from. Trainings of several workers share none: NCCL refuses two ranks of a job on one GPU.
    Without: two workers; forward and reverse run side by side even on two cores, because a training waits as long as
    it computes. A worker gets no more cores than lets all of them be placed, each whole on a node.

    Parameters
    ----------
    count
        Trainings.
    nodes
        As `cluster.connect.node_resources` gives them.
    workers
        Of a training.

    Raises
    ------
    ClusterError
        When one training alone asks for more workers than there are GPUs or CPUs.
    """
    from cluster.errors import ClusterError

    places = [node for node in nodes if node.get("CPU", 0) > 0]
    if gpus := sum(int(node.get("GPU", 0)) for node in places):
        places = [node for node in places if node.get("GPU", 0) >= 1]
    cpus = sum(node["CPU"] for node in places)
    unit, units = ("GPU", gpus) if gpus else ("CPU", int(cpus))
    if units < 1 or not places:
        raise ClusterError("the cluster has neither a CPU nor a GPU to train on; start Ray with --num-cpus")
    workers = workers or (1 if gpus else min(2, units))
    if not 1 <= workers <= units:
        raise ClusterError(f"{workers} workers need as many {unit}s; the cluster has {units}. Lower --workers")
    a_gpu = 1  # trainings on one
    if gpus and workers == 1:
        a_gpu = max(1, min(MOST_A_GPU, math.ceil(count / gpus), int(cpus / gpus)))
    at_once = max(1, min(count, units * a_gpu // workers))
    if not gpus and units >= 2:
        at_once = max(at_once, min(count, 2))

    def placed(share: float) -> int:
        """Workers of so many cores that the nodes hold."""
        rooms = ((int(node["CPU"] / share + 1e-9), int(node.get("GPU", 0)) * a_gpu) for node in places)
        return sum(min(room) if gpus else room[0] for room in rooms)

    wanted = at_once * workers
    most = int(min(cpus / wanted, MOST_THREADS))
    shares = [*range(most, 0, -1), *(int(100 / parts) / 100 for parts in range(2, 101))]
    share = next((share for share in shares if placed(share) >= wanted), 0.0)
    return FitPlan(workers=workers, cpus=share, gpus=part_of_gpu(a_gpu) if gpus else 0.0, at_once=at_once)


def part_of_gpu(sharers: int) -> float:
    """What each of so many may ask Ray for of one GPU; a little less than their part, so that all of them fit."""
    return int(100 / sharers) / 100


def run_fits(
    fits: Sequence[Fit], plan: FitPlan, folder: str, console: "Console", *, max_failures: int = 3
) -> dict[str, "TrainState"]:
    """Run (or resume, or only read back) every training.

    Parameters
    ----------
    fits : sequence of Fit
    plan : FitPlan
    folder : str
        URI, local or S3, that all nodes reach; every training keeps its checkpoints in a folder of its name below it.
    console : Console
        Where progress is shown.
    max_failures : int
        Times a training goes on from its last checkpoint after a worker or node died.

    Returns
    -------
    dict of name to TrainState

    Raises
    ------
    ModelError, ClusterError
    """
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    if len(ray.nodes()) == 1:
        # It watches for nodes being taken away: a process a training that a single node does not need.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    states: dict[str, TrainState] = {}
    with (
        ThreadPoolExecutor(plan.at_once) as pool,
        _Display(fits, folder, console) as display,
        waiting_said(display.say, "RayTrainWorker", f"a training wants {plan.workers} workers of {plan.cpus:g} cores"),
    ):
        waiting = {pool.submit(_fit, fit, plan, folder, max_failures): fit.name for fit in fits}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    name = waiting.pop(future)
                    states[name] = future.result()
                    display.finish(name, states[name])
                display.refresh()
        except BaseException as error:
            for future in waiting:
                future.cancel()
            if not isinstance(error, Exception):
                # Interrupted: leave Ray, or the threads would wait for their trainings. Checkpoints stay.
                ray.shutdown()
            raise
    return {fit.name: states[fit.name] for fit in fits}


def _fit(fit: Fit, plan: FitPlan, folder: str, max_failures: int) -> "TrainState":
    """One training, from its last checkpoint on; what is finished is only read back."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.errors import ClusterError
    from pthnet.errors import ModelError
    from storage.files import filesystem, join, local_path, write_atomic
    from tasks.train import train_loop

    done = join(folder, fit.name, "done.json")
    fs, root = filesystem(folder)
    if (finished := _read_json(done)) is not None:
        state = _load(ray.train.Checkpoint(f"{root}/{fit.name}/{finished['checkpoint']}", filesystem=fs))
        if state.settings != fit.settings.to_dict():
            raise ModelError(f"{join(folder, fit.name)} was trained with other settings; give another --run-name")
        return state
    trainer = TorchTrainer(
        train_loop,  # type: ignore[arg-type]
        train_loop_config={
            "features": fit.features,
            "split": fit.split,
            "settings": fit.settings,
            "threads": max(1, int(plan.cpus)),
            "gpus": plan.gpus,
            "progress": join(folder, fit.name, "progress.json"),
        },
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=bool(plan.gpus),
            resources_per_worker={"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=fit.name,
            storage_path=root if "://" in folder else local_path(folder),
            storage_filesystem=fs if "://" in folder else None,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"training {fit.name} failed {max_failures + 1} times ({first}); the same command resumes it"
        ) from error
    answer: dict[str, Any] = result.return_value  # type: ignore[attr-defined]
    if "refused" in answer:
        raise ModelError(f"{fit.name}: {answer['refused']}")
    assert result.checkpoint is not None  # at least one epoch was trained
    state = _load(result.checkpoint)
    write_atomic(done, json.dumps({"checkpoint": result.checkpoint.path.rstrip("/").rsplit("/", 1)[-1]}).encode())
    return state


def _load(checkpoint: Any) -> "TrainState":
    from tasks.checkpoints import load_state

    with checkpoint.as_directory() as directory:
        return load_state(directory)


def _read_json(uri: str) -> dict[str, Any] | None:
    from storage.files import read_bytes

    try:
        return dict(json.loads(read_bytes(uri)))
    except FileNotFoundError:
        return None


class _Display:
    """One bar a training on a terminal; elsewhere one line when a training is done."""

    def __init__(self, fits: Sequence[Fit], folder: str, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.folder = console, folder
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks = {fit.name: self.progress.add_task(fit.name, total=fit.settings.epochs, note="") for fit in fits}
        self.read_at = 0.0
        self.lock = threading.Lock()

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, what: str) -> None:
        """Tell something that happened on the way."""
        self.console.print(what, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Read what rank 0 of every running training last wrote; at most once a second, only where someone watches."""
        if not self.console.is_terminal or time.monotonic() - self.read_at < 1:
            return
        self.read_at = time.monotonic()
        from storage.files import join

        for name, task in self.tasks.items():
            if not self.progress.tasks[task].finished and (
                reached := _read_json(join(self.folder, name, "progress.json"))
            ):
                self.progress.update(task, completed=reached["epoch"], note=_note(reached))

    def finish(self, name: str, state: "TrainState") -> None:
        """Mark one training as done."""
        last = state.history[-1]
        self.progress.update(self.tasks[name], completed=self.progress.tasks[self.tasks[name]].total, note=_note(last))
        if not self.console.is_terminal:
            line = f"trained {name}: {state.epoch} epochs, {_note(last)}"
            self.say(line)


def _note(record: Mapping[str, Any]) -> str:
    held_out = next((part for part in ("validation", "test") if f"{part}_uar" in record), None)
    tail = f"  {held_out} UAR {100 * record[f'{held_out}_uar']:.2f}" if held_out else ""
    return f"loss {record['loss']:.4f}{tail}  {record['clips_per_s']:,.0f} clips/s"
