"""Leave one subject out, plain against stacked: epochs per second and losses. `python -m benchmarks.loso --dim 56`

plain: one fold after another, one model, q and k and the softmax spelled out, PyTorch's defaults, all threads.
stacked: the workflow's way: one process a core, folds in stacks, one-token attention as a product, exact fast products.
Both get the same initial weights and batches. Rounds alternate so that a change in the machine's load meets both.

The same on a GPU:

    python -m benchmarks.loso --device cuda           # float32 in both arms; dim 256, 16 folds
    python -m benchmarks.loso --device cuda --tf32    # stacked with TF32, plain as PyTorch comes

On a GPU both arms run in one process and their clock starts at the end of each training's first epoch: drawing initial
weights on the processor takes longer than a few epochs there, and next to 800 of them nothing.
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import matmul_peak
from pthnet.allocator import keep_freed_memory
from pthnet.flow import flow_image
from pthnet.htnet import HTNetConfig
from pthnet.htnet_stack import stack_of
from pthnet.matmul import fastest_exact_matmul
from tasks.loso_data import Fold, leave_one_out, network_input
from tasks.loso_train import (
    LosoSettings,
    bytes_of_fold,
    folds_at_once,
    train_alone,
    train_folds,
    train_plainly,
)
from tasks.synth_micro import plan_samples, render_faces

RESULTS = Path(__file__).parent / "results" / "loso.md"


def composite() -> tuple[np.ndarray, np.ndarray, list[Fold]]:
    """The drawn composite set: inputs [442, 3, 28, 28], labels, 68 folds."""
    samples = plan_samples()
    faces = [render_faces(sample) for sample in samples]
    images = np.stack([flow_image(face.onset, face.apex, "farneback") for face in faces])
    labels = np.array([sample.label for sample in samples], np.int64)
    return network_input(images), labels, leave_one_out(np.array([sample.subject for sample in samples]))


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


_DATA: dict[str, np.ndarray] = {}


def _begin(images: np.ndarray, labels: np.ndarray) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    _DATA.update(images=images, labels=labels)
    with fastest_exact_matmul():
        torch.bmm(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8))


def stacked(folds: Sequence[Fold], settings: LosoSettings) -> tuple[list[np.ndarray], float]:
    """Losses of every fold and the CPU seconds spent."""
    began = cpu_seconds()
    outcomes = train_folds(_DATA["images"], _DATA["labels"], folds, settings)
    return [outcome.losses for outcome in outcomes], cpu_seconds() - began


def plain(folds: Sequence[Fold], settings: LosoSettings) -> tuple[list[np.ndarray], float]:
    """The same, one fold after another with full attention."""
    began = cpu_seconds()
    full = replace(settings, config=replace(settings.config, attention="block-full"))
    images, labels = (torch.from_numpy(_DATA[key]) for key in ("images", "labels"))
    losses = [np.array(train_alone(images, labels, fold, full).losses) for fold in folds]
    return losses, cpu_seconds() - began


def product_seconds(fold: Fold, settings: LosoSettings, threads: int) -> float:
    """Seconds of the matrix products of a fold's epoch, at the rate of a large square one with this many threads."""
    with FlopCounterMode(display=False) as counter:
        train_folds(_DATA["images"], _DATA["labels"], [fold], replace(settings, epochs=1))
    torch.set_num_threads(threads)
    return counter.get_total_flops() / matmul_peak("cpu", "fp32")


Figures = dict[str, list[tuple[float, float]]]  # arm -> of every round: seconds a fold, and CPU seconds or peak bytes


def main() -> None:
    """Measure and write the table."""
    given = arguments()
    images, labels, folds = composite()
    settings = LosoSettings(config=HTNetConfig(dim=given.dim), epochs=given.epochs, tf32=given.tf32)
    rounds = [folds[start : start + given.round] for start in range(0, given.folds, given.round)]
    torch.set_num_threads(given.threads)
    _DATA.update(images=images, labels=labels)
    measure = on_gpu if given.device == "cuda" else on_cpu
    figures, worst = measure(given, rounds, settings)
    notes = gpu_notes if given.device == "cuda" else cpu_notes
    _write(given, figures, worst, len(rounds), notes(given, figures, settings, folds[0]))


def arguments() -> argparse.Namespace:
    """The command line, with the defaults of its device."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, help="56; on a GPU 256, the published one")
    parser.add_argument(
        "--epochs", type=int, help="per round and fold; 2, on a GPU 20, of which the first is not timed"
    )
    parser.add_argument("--folds", type=int, help="of the 68; all, on a GPU 16")
    parser.add_argument("--round", type=int, help="folds between two changes of arm; 4, on a GPU one stack")
    parser.add_argument("--at-once", type=int, help="folds in a stack; 1, on a GPU what fits, but at most 16")
    parser.add_argument("--workers", type=int, default=cores, help="processes of the stacked arm; a GPU has one")
    parser.add_argument("--threads", type=int, default=cores, help="of the plain arm")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--tf32", action="store_true", help="on a GPU: stacked with TF32, plain with PyTorch's defaults"
    )
    given = parser.parse_args()
    gpu = given.device == "cuda"
    given.dim = given.dim or (256 if gpu else 56)
    given.epochs = given.epochs or (20 if gpu else 2)
    given.folds = min(given.folds or (16 if gpu else 68), 68)
    if given.at_once is None:
        fits = folds_at_once(HTNetConfig(dim=given.dim), torch.device(given.device))
        given.at_once = min(fits, 16, given.folds)
    given.round = given.round or (given.at_once if gpu else 4)
    if gpu and given.epochs < 2:
        parser.error("on a GPU the first epoch is not timed; --epochs must be at least 2")
    return given


def on_cpu(given: argparse.Namespace, rounds: list[list[Fold]], settings: LosoSettings) -> tuple[Figures, float]:
    """Whole trainings, the stacked arm's in as many processes as cores; and the largest difference of a loss."""
    figures: Figures = {"plain": [], "stacked": []}
    worst = 0.0
    first, workers = rounds[0][:1], given.workers
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_begin, initargs=(_DATA["images"], _DATA["labels"])
    )
    with pool:
        list(pool.map(stacked, [first] * workers, [replace(settings, epochs=1)] * workers))
        plain(first, replace(settings, epochs=1))
        for number, chosen in enumerate(rounds):
            began = time.perf_counter()
            expected, used = plain(chosen, settings)
            figures["plain"].append(((time.perf_counter() - began) / len(chosen), used / len(chosen)))
            groups = [chosen[start : start + given.at_once] for start in range(0, len(chosen), given.at_once)]
            began = time.perf_counter()
            answers = list(pool.map(stacked, groups, [settings] * len(groups)))
            seconds = time.perf_counter() - began
            figures["stacked"].append((seconds / len(chosen), sum(used for _, used in answers) / len(chosen)))
            worst = max(worst, difference(expected, [losses for part, _ in answers for losses in part]))
            parts = ", ".join(f"{name} {values[-1][0]:.3f} s" for name, values in figures.items())
            print(f"round {number + 1}/{len(rounds)}: {parts}", flush=True)
    return figures, worst


class Clock:
    """Given as `report`: seconds of the epochs after the first of every training that reports to it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._before = 0.0

    def __call__(self, epoch: int, loss: float) -> None:
        torch.cuda.synchronize()
        now = time.perf_counter()
        if epoch > 1:
            self.seconds += now - self._before
        self._before = now


def on_gpu(given: argparse.Namespace, rounds: list[list[Fold]], settings: LosoSettings) -> tuple[Figures, float]:
    """Epochs after the first, both arms in this process; and the largest difference of a loss."""
    figures: Figures = {"plain": [], "stacked": []}
    worst, timed = 0.0, settings.epochs - 1
    torch.cuda.init()  # the count of memory needs it
    for number, chosen in enumerate(rounds):
        losses = {}
        for name, train in (("stacked", stacks_on_gpu), ("plain", plain_on_gpu)):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            clock = Clock()
            losses[name] = train(chosen, settings, given.at_once, clock)
            peak = torch.cuda.max_memory_allocated()
            rate = len(chosen) * timed / clock.seconds
            figures[name].append((settings.epochs / rate, peak))
            print(f"round {number + 1}/{len(rounds)} {name}: {rate:.2f} fold epochs/s, {peak / 1e9:.1f} GB", flush=True)
        worst = max(worst, difference(losses["plain"], losses["stacked"]))
    return figures, worst


def stacks_on_gpu(folds: Sequence[Fold], settings: LosoSettings, at_once: int, clock: Clock) -> list[np.ndarray]:
    """Losses of every fold, one stack after another."""
    losses = []
    for start in range(0, len(folds), at_once):
        group = folds[start : start + at_once]
        outcomes = train_folds(_DATA["images"], _DATA["labels"], group, settings, device="cuda", report=clock)
        losses += [outcome.losses for outcome in outcomes]
    return losses


def plain_on_gpu(folds: Sequence[Fold], settings: LosoSettings, at_once: int, clock: Clock) -> list[np.ndarray]:
    """Losses of every fold, one after another; without TF32 in float32, with it at PyTorch's own precision."""
    train = train_plainly if settings.tf32 else train_alone
    full = replace(settings, config=replace(settings.config, attention="block-full"))
    images, labels = (torch.from_numpy(_DATA[key]).cuda() for key in ("images", "labels"))
    losses = []
    for number, fold in enumerate(folds):
        before = clock.seconds
        losses.append(np.array(train(images, labels, fold, full, clock).losses))
        rate = (settings.epochs - 1) / (clock.seconds - before)
        print(f"plain, fold {number + 1}/{len(folds)}: {rate:.2f} epochs/s", flush=True)
    return losses


def difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest relative difference of any fold's and epoch's loss."""
    pairs = zip(expected, found, strict=True)
    return max(float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-3))) for a, b in pairs)


def products_of_step(config: HTNetConfig, batch: int) -> int:
    """Floating-point operations of the matrix products of a step, for one model of a stack; nothing is computed."""
    stack = stack_of(config, [0], "meta")
    patches = torch.empty(1, batch, config.grid**2, 3 * config.patch_size**2, device="meta")
    with FlopCounterMode(display=False) as counter:
        stack(patches).sum().backward()
    return int(counter.get_total_flops())


def cpu_notes(given: argparse.Namespace, figures: Figures, settings: LosoSettings, fold: Fold) -> list[str]:
    """How far the products alone would come."""
    seconds = product_seconds(fold, settings, given.threads)
    plain_rate = given.epochs / statistics.median(seconds for seconds, _ in figures["plain"])
    return [
        "CPU seconds of several threads include their waiting for one another; with one thread and one process they are"
        " the measure that other programs on the machine disturb least.",
        "",
        f"The stacked arm's matrix products alone, at the rate of large ones on all cores: {1 / seconds:.2f} fold"
        f" epochs/s, {1 / seconds / plain_rate:.1f} times the plain loop.",
        "",
    ]


def gpu_notes(given: argparse.Namespace, figures: Figures, settings: LosoSettings, fold: Fold) -> list[str]:
    """What the stack computes a second, and its memory against the estimate that sizes stacks."""
    whole, rest = divmod(len(fold.train), settings.batch_size)
    config = settings.config
    work = whole * products_of_step(config, settings.batch_size) + (products_of_step(config, rest) if rest else 0)
    rate = given.epochs / statistics.median(seconds for seconds, _ in figures["stacked"])
    held = max(peak for _, peak in figures["stacked"]) / min(given.at_once, given.round, given.folds)
    return [
        f"The stack's matrix products: {work / 1e12:.3f} TFLOP a fold epoch, {work * rate / 1e12:.1f} TFLOP/s.",
        f"Its memory a fold: {held / 1e9:.2f} GB, estimated {bytes_of_fold(config, settings.batch_size) / 1e9:.2f}.",
        "",
    ]


def _write(given: argparse.Namespace, figures: Figures, worst: float, rounds: int, notes: list[str]) -> None:
    gpu = given.device == "cuda"
    seconds = {name: [value for value, _ in parts] for name, parts in figures.items()}
    second = {name: [value for _, value in parts] for name, parts in figures.items()}
    rate = {
        name: [
            given.epochs / statistics.median(seconds[name]),
            given.epochs / min(seconds[name]),
            max(second[name]) / 1e9 if gpu else given.epochs / statistics.median(second[name]),
        ]
        for name in figures
    }
    lines = [
        f"## dim {given.dim}, {given.folds} folds of 442 samples, {given.epochs} epochs each, {_where(given)}",
        "",
        f"{os.cpu_count()} cores; {_how(given)}; PyTorch {torch.__version__};"
        f" {rounds} alternating rounds; load average {os.getloadavg()[0]:.1f} at the end.",
        "",
        f"| | fold epochs/s, median | best round | {'peak GB' if gpu else 'per CPU second, median'} |",
        "|---|---|---|---|",
        *(f"| {name} | {a:.2f} | {b:.2f} | {c:.2f} |" for name, (a, b, c) in rate.items()),
        "| ratio | " + " | ".join(f"{s / p:.1f}" for p, s in zip(rate["plain"], rate["stacked"], strict=True)) + " |",
        "",
        *notes,
        f"Largest relative difference of any fold's and epoch's training loss: {worst:.1e}.",
        "",
    ]
    print("\n".join(lines), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    head = (
        "# Leaving one subject out: plain loop against stacks of folds\n\n`python -m benchmarks.loso`, newest last.\n\n"
    )
    before = RESULTS.read_text() if RESULTS.exists() else head
    RESULTS.write_text(before + "\n".join(lines) + "\n")


def _where(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.device == "cuda" else _processor()


def _how(given: argparse.Namespace) -> str:
    """Processes, threads and precision of the two arms."""
    if given.device == "cpu":
        with fastest_exact_matmul() as route:
            pass
        return (
            f"plain with {given.threads} threads, stacked with {given.workers} processes of one thread,"
            f" {given.at_once} folds a stack; float32 products: {route}"
        )
    precision = "both arms in float32 without TF32"
    if given.tf32:
        products = "TF32" if torch.get_float32_matmul_precision() != "highest" else "float32"
        convolutions = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
        precision = f"stacked with TF32, plain as PyTorch comes: {convolutions} convolutions, {products} products"
    return (
        f"both arms in one process, {given.at_once} folds a stack; {precision}; every training's first epoch not timed"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
