"""Leave one subject out, plain against stacked: epochs per second and losses. `python -m benchmarks.loso --dim 56`

plain: one fold after another, one model, q and k and the softmax spelled out, PyTorch's defaults, all threads.
stacked: the workflow's way: one process a core, folds in stacks, one-token attention as a product, exact fast products.
Both get the same initial weights and batches. Rounds alternate so that a change in the machine's load meets both.
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
from pthnet.matmul import fastest_exact_matmul
from tasks.loso_data import Fold, leave_one_out, network_input
from tasks.loso_train import LosoSettings, train_alone, train_folds
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


def stacked(folds: Sequence[Fold], settings: LosoSettings, device: str = "cpu") -> tuple[list[np.ndarray], float]:
    """Losses of every fold and the CPU seconds spent."""
    began = cpu_seconds()
    outcomes = train_folds(_DATA["images"], _DATA["labels"], folds, settings, device=device)
    return [outcome.losses for outcome in outcomes], cpu_seconds() - began


def plain(folds: Sequence[Fold], settings: LosoSettings, device: str = "cpu") -> tuple[list[np.ndarray], float]:
    """The same, one fold after another with full attention."""
    began = cpu_seconds()
    full = replace(settings, config=replace(settings.config, attention="block-full"))
    images, labels = (torch.from_numpy(_DATA[key]).to(device) for key in ("images", "labels"))
    losses = [np.array(train_alone(images, labels, fold, full).losses) for fold in folds]
    if device != "cpu":
        torch.cuda.synchronize()
    return losses, cpu_seconds() - began


def product_seconds(fold: Fold, settings: LosoSettings, threads: int) -> float:
    """Seconds of the matrix products of a fold's epoch, at the rate of a large square one with this many threads."""
    with FlopCounterMode(display=False) as counter:
        train_folds(_DATA["images"], _DATA["labels"], [fold], replace(settings, epochs=1))
    torch.set_num_threads(threads)
    return counter.get_total_flops() / matmul_peak("cpu", "fp32")


def main() -> None:
    """Measure and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--dim", type=int, default=56)
    arguments.add_argument("--epochs", type=int, default=2, help="per round and fold")
    arguments.add_argument("--folds", type=int, default=68, help="of the 68")
    arguments.add_argument("--round", type=int, default=4, help="folds between two changes of arm")
    arguments.add_argument("--at-once", type=int, default=2, help="folds in a stack")
    arguments.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the stacked arm"
    )
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the plain arm")
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = arguments.parse_args()
    images, labels, folds = composite()
    settings = LosoSettings(config=HTNetConfig(dim=given.dim), epochs=given.epochs)
    rounds = [folds[start : start + given.round] for start in range(0, given.folds, given.round)]
    torch.set_num_threads(given.threads)
    _DATA.update(images=images, labels=labels)
    figures: dict[str, list[tuple[float, float]]] = {"plain": [], "stacked": []}
    worst = 0.0
    workers = 1 if given.device == "cuda" else given.workers
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(images, labels))
    with pool:
        list(
            pool.map(stacked, [folds[:1]] * workers, [replace(settings, epochs=1)] * workers, [given.device] * workers)
        )
        plain(folds[:1], replace(settings, epochs=1), given.device)
        for number, chosen in enumerate(rounds):
            began = time.perf_counter()
            expected, used = plain(chosen, settings, given.device)
            figures["plain"].append(((time.perf_counter() - began) / len(chosen), used / len(chosen)))
            groups = [chosen[start : start + given.at_once] for start in range(0, len(chosen), given.at_once)]
            began = time.perf_counter()
            answers = list(pool.map(stacked, groups, [settings] * len(groups), [given.device] * len(groups)))
            seconds = time.perf_counter() - began
            figures["stacked"].append((seconds / len(chosen), sum(used for _, used in answers) / len(chosen)))
            found = [losses for part, _ in answers for losses in part]
            for alone, together in zip(expected, found, strict=True):
                worst = max(worst, float(np.max(np.abs(alone - together) / np.maximum(np.abs(alone), 1e-3))))
            print(
                f"round {number + 1}/{len(rounds)}: " + ", ".join(f"{k} {v[-1][0]:.3f} s" for k, v in figures.items())
            )
    products = product_seconds(folds[0], settings, given.threads) if given.device == "cpu" else None
    _write(given, figures, worst, len(rounds), products)


def _write(
    given: argparse.Namespace,
    figures: dict[str, list[tuple[float, float]]],
    worst: float,
    rounds: int,
    products: float | None,
) -> None:
    with fastest_exact_matmul(given.device) as route:
        pass
    where = torch.cuda.get_device_name() if given.device == "cuda" else _processor()
    rate = {
        name: [given.epochs / value for value in (statistics.median(s), min(s), statistics.median(c))]
        for name, parts in figures.items()
        for s, c in [tuple(zip(*parts, strict=True))]
    }
    lines = [
        f"## dim {given.dim}, {min(given.folds, 68)} folds of 442 samples, {given.epochs} epochs each, {where}",
        "",
        f"{os.cpu_count()} cores; plain with {given.threads} threads, stacked with {given.workers} processes"
        f" of one thread, {given.at_once} folds a stack; float32 products: {route}; PyTorch {torch.__version__};"
        f" {rounds} alternating rounds; load average {os.getloadavg()[0]:.1f} at the end.",
        "",
        "| | fold epochs/s, median | best round | per CPU second, median |",
        "|---|---|---|---|",
        *(f"| {name} | {a:.2f} | {b:.2f} | {c:.2f} |" for name, (a, b, c) in rate.items()),
        "| ratio | " + " | ".join(f"{s / p:.1f}" for p, s in zip(rate["plain"], rate["stacked"], strict=True)) + " |",
        "",
        "CPU seconds of several threads include their waiting for one another; with one thread and one process they are"
        " the measure that other programs on the machine disturb least.",
        "",
        f"Largest relative difference of any fold's and epoch's training loss: {worst:.1e}.",
        "",
    ]
    if products:
        lines += [
            f"The stacked arm's matrix products alone, at the rate of large ones on all cores: {1 / products:.2f} fold"
            f" epochs/s, {1 / products / rate['plain'][0]:.1f} times the plain loop.",
            "",
        ]
    print("\n".join(lines))
    RESULTS.parent.mkdir(exist_ok=True)
    head = (
        "# Leaving one subject out: plain loop against stacks of folds\n\n`python -m benchmarks.loso`, newest last.\n\n"
    )
    before = RESULTS.read_text() if RESULTS.exists() else head
    RESULTS.write_text(before + "\n".join(lines) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
