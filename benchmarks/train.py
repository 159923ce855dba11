"""Training throughput against the published procedure, and loading from 10,000 to 1,000,000 clips.

    python -m benchmarks.train                       # both tables; two CPU cores take about four minutes
    python -m benchmarks.train --clips 4096 --rounds 5 --no-loading
    python -m benchmarks.train --device cuda --no-loading           # -> benchmarks/results/train-cuda.md; a minute

Published, written plainly: a sample is three .npy files read by DataLoader workers, levels go through nn.Conv1d one by
one. Ours is `tasks.train` as `pthnet train` runs it. Both start from the same weights and meet the same clips in the
same order; epochs alternate in one process, so that a change in the machine's load meets both. Losses of ten steps are
compared first, without noise (clips this short leave no choice of windows) and, on a GPU, without TF32; the published
loop is timed with the TF32 convolutions that PyTorch gives it there.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import keep, matmul_peak, table
from benchmarks.synthetic_table import loading_table
from pthnet.losses import pyramid_loss
from pthnet.matmul import exact_float32
from pthnet.pth_net import PTHNet, PTHNetConfig, flops
from pthnet.published import published_layout
from pthnet.slots import sample_slots
from pthnet.windows import LEVELS, SLOTS, STRIDES, pyramid
from tasks.feature_set import FeatureSet, Split
from tasks.sampling import DeviceTable
from tasks.train import train
from tasks.train_settings import TrainSettings

BATCH, NOISE = 32, 0.0005
COMPARED = 10  # steps


def synthetic_clips(count: int, dim: int) -> FeatureSet:
    """Clips of 28 to 60 frames, as FERV39k has: 4 to 12 windows at the high level."""
    rng = np.random.default_rng(0)
    grids = [pyramid(int(frames)) for frames in rng.integers(28, 61, count)]
    counts = [len(grid.starts) for grid in grids]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    labels = rng.integers(0, 7, count)
    # Labels that features tell of: on noise alone training is chaotic, and rounding decides where it goes.
    values = rng.standard_normal((7, dim), dtype=np.float32)[np.repeat(labels, counts)]
    values += rng.standard_normal(values.shape, dtype=np.float32)
    return FeatureSet(
        clip_ids=np.array([f"{index:07d}" for index in range(count)]),
        features=values,
        offsets=offsets,
        positions={level: np.concatenate([grid.level(level) for grid in grids]) for level in LEVELS},
        position_offsets={
            level: np.concatenate([[0], np.cumsum([len(grid.level(level)) for grid in grids])]) for level in LEVELS
        },
        labels=labels,
    )


class PublishedDataset(Dataset[tuple[dict[str, tuple[Tensor, Tensor]], int]]):
    """One sample: three .npy files (a stride each), slots filled, noise added."""

    def __init__(self, folder: Path, features: FeatureSet, noise: float) -> None:
        self.folder, self.labels, self.noise = folder, features.labels, noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, clip: int) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        levels = {}
        for level in LEVELS:
            windows = np.load(self.folder / f"{STRIDES[level]}" / f"{clip}.npy")
            chosen = windows[sample_slots(len(windows), SLOTS[level], np.random.default_rng())]
            x = torch.zeros(windows.shape[1], SLOTS[level])
            x[:, : len(chosen)] = torch.from_numpy(chosen.T)
            mask = torch.arange(SLOTS[level]) < len(chosen)
            levels[level] = (x + self.noise * torch.randn_like(x) if self.noise else x, mask)
        return levels, int(self.labels[clip])


def write_published(folder: Path, features: FeatureSet) -> None:
    """The published layout of features: a file a clip and stride."""
    for level in LEVELS:
        (folder / f"{STRIDES[level]}").mkdir(parents=True)
        for clip in range(len(features)):
            places = features.positions[level][slice(*features.position_offsets[level][clip : clip + 2])]
            np.save(folder / f"{STRIDES[level]}" / f"{clip}.npy", features.features[features.offsets[clip] + places])


def plain_network(model: PTHNet) -> torch.nn.Module:
    """The network level by level with nn.Conv1d on [B, C, T], with the same weights."""
    from tests.pthnet.plain_pth_net import PlainPTHNet

    config = model.config
    plain = PlainPTHNet(config.in_dim, config.dim, config.mlp_dim, config.num_classes)
    ours = model.state_dict()
    state = {}
    for name, (published, _) in published_layout(model).items():
        target = plain.state_dict()[published]
        source = ours[name]
        # Ours keep the channels last and the taps first.
        if source.ndim == target.ndim == 3 and source.shape != target.shape:
            source = source.permute(1, 2, 0)
        elif source.ndim == 2 and target.ndim == 3 and source.shape[0] == target.shape[-1] and target.shape[1] == 1:
            source = source.T
        state[published] = source.reshape(target.shape)
    plain.load_state_dict(state)
    return plain


def cpu_seconds() -> float:
    """CPU time of this process and its finished children: what a busy machine leaves comparable."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


class Published:
    """The published loop, one epoch at a time."""

    def __init__(self, folder: Path, features: FeatureSet, model: PTHNet, workers: int, device: torch.device) -> None:
        self.folder, self.features, self.workers, self.device = folder, features, workers, device
        self.network = plain_network(model).to(device).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)

    def epoch(self, order: np.ndarray, noise: float) -> Iterator[float]:
        data = PublishedDataset(self.folder, self.features, noise)
        loader = DataLoader(
            data, BATCH, sampler=order.tolist(), num_workers=self.workers, pin_memory=self.device.type == "cuda"
        )
        for levels, target in loader:
            moved = {level: (x.to(self.device), mask.to(self.device)) for level, (x, mask) in levels.items()}
            loss, _ = pyramid_loss(self.network(moved), target.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield float(loss.detach())


class Ours:
    """`tasks.train.train`, one epoch at a time; the state goes on from epoch to epoch."""

    def __init__(
        self, features: FeatureSet, settings: TrainSettings, device: torch.device, clips: int | None = None
    ) -> None:
        self.features, self.settings = features, settings
        self.table = DeviceTable(features, device)
        everything, none = np.arange(clips or len(features)), np.arange(0)
        self.split = Split(fold="1", train=everything, validation=none, test=none)

    def epoch(self, losses: list[float] | None = None) -> float:
        """Clips per second of one epoch (the seconds that training itself counts); on a GPU, which records a step in
        the first one, of a second."""
        epochs = 2 if self.table.device.type == "cuda" and losses is None else 1
        on_step = None if losses is None else losses.append
        state = train(
            self.features, self.split, replace(self.settings, epochs=epochs), table=self.table, on_step=on_step
        )
        return float(state.history[-1]["clips_per_s"])


def compare(clips: int, rounds: int, workers: int, device: torch.device, seconds: float | None = None) -> str:
    """The throughput table; no further round begins once `seconds` have gone by."""
    from tasks.sampling import epoch_order
    from tasks.train import build_model

    started = time.perf_counter()
    config = PTHNetConfig(drop_path=0.0)
    features = synthetic_clips(clips, config.in_dim)
    settings = TrainSettings(model=config, noise=NOISE)
    order = epoch_order(np.arange(clips), features.labels, False, settings.seed, 0, 0)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_published(folder, features)
        start = build_model(settings, features, np.arange(clips))
        quiet = [replace(settings, noise=0.0, precision=precision) for precision in ("fp32", "bf16")]
        few = min(clips, COMPARED * BATCH)
        first = epoch_order(np.arange(few), features.labels[:few], False, settings.seed, 0, 0)
        with exact_float32(device):
            theirs = list(Published(folder, features, start, workers, device).epoch(first, 0.0))
        apart = []
        for setting in quiet:
            ours: list[float] = []
            Ours(features, setting, device, few).epoch(ours)
            apart.append(abs(sum(ours) - sum(theirs)) / sum(theirs))
        print(f"losses compared after {time.perf_counter() - started:.0f} s", flush=True)
        contenders = {
            precision: Ours(features, replace(settings, precision=precision), device) for precision in ("fp32", "bf16")
        }
        published = Published(folder, features, start, workers, device)
        speeds: dict[str, list[float]] = {"published": [], "fp32": [], "bf16": []}
        costs: dict[str, list[float]] = {name: [] for name in speeds}
        for number in range(rounds):
            if number and seconds is not None and time.perf_counter() - started > seconds:
                break
            began, cost = time.perf_counter(), cpu_seconds()
            for _ in published.epoch(order, NOISE):
                pass
            speeds["published"].append(clips / (time.perf_counter() - began))
            costs["published"].append(cpu_seconds() - cost)
            for name, contender in contenders.items():
                cost = cpu_seconds()
                speeds[name].append(contender.epoch())
                costs[name].append(cpu_seconds() - cost)
            latest = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in speeds.items())
            print(f"round {number + 1} after {time.perf_counter() - started:.0f} s: {latest} clips/s", flush=True)
    base = statistics.median(speeds["published"])
    base_cost = statistics.median(costs["published"])
    names = {"published": "published procedure, fp32", "fp32": "pthnet, fp32", "bf16": "pthnet, bf16"}
    loss = {"published": "", "fp32": f"{apart[0]:.1e}", "bf16": f"{apart[1]:.1e}"}
    rows, on_gpu = [], device.type == "cuda"
    for name, values in speeds.items():
        middle = statistics.median(values)
        ratios = sorted(mine / other for mine, other in zip(values, speeds["published"], strict=True))
        work = 3 * 2 * flops(config) * middle
        peak = matmul_peak(device.type, "bf16" if name == "bf16" else "fp32")
        rows.append(
            [
                names[name],
                f"{middle:,.0f}",
                f"{middle / base:.2f}",
                f"{ratios[0]:.2f}–{ratios[-1]:.2f}",
                f"{base_cost / statistics.median(costs[name]):.2f}",
                f"{work / peak:.0%}",
                loss[name],
            ]
        )
    header = (
        "",
        "clips/s",
        "times published",
        "range over rounds",
        "by CPU time",
        "of matmul peak",
        "mean loss apart by",
    )
    notes = [
        f"Batch {BATCH}, three levels, {config.in_dim}-d features, one worker, {torch.get_num_threads()} threads; "
        f"{clips} clips, median of {len(speeds['fp32'])} alternating rounds, DataLoader with {workers} workers; "
        "loss of ten steps.",
        *(["The published loop's convolutions run in TF32, PyTorch's default; ours in float32."] * on_gpu),
        "",
    ]
    return table("Training throughput", header, rows, notes)


def whole_epoch(clips: int, device: torch.device) -> str:
    """Seconds of one epoch of so many clips; 31,088 train on FERV39k."""
    config = PTHNetConfig(drop_path=0.1)
    features = synthetic_clips(clips, config.in_dim)
    seconds = {
        precision: clips / Ours(features, TrainSettings(model=config, precision=precision), device).epoch()
        for precision in ("fp32", "bf16")
    }
    told = ", ".join(f"{value:.2f} s in {precision}" for precision, value in seconds.items())
    return f"An epoch of {clips:,} clips with drop path, the second of a training: {told}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, help="384; 4096 on a GPU, which does 12 steps too fast to time")
    parser.add_argument("--rounds", type=int, help="5; 3 on a GPU")
    parser.add_argument("--seconds", type=float, help="begin no further round after so long; 45 on a GPU")
    parser.add_argument("--loader-workers", type=int, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epoch-clips", type=int, help="also time one epoch of so many; 31,088 on a GPU, else none")
    parser.add_argument("--loading", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--most-clips", type=int, default=1_000_000)
    given = parser.parse_args()
    on_gpu = given.device.startswith("cuda")
    text = compare(
        given.clips or (4096 if on_gpu else 384),
        given.rounds or (3 if on_gpu else 5),
        given.loader_workers,
        torch.device(given.device),
        given.seconds or (45.0 if on_gpu else None),
    )
    whole = given.epoch_clips or (31_088 if on_gpu else 0)
    if whole:
        print(text, flush=True)
        text += whole_epoch(whole, torch.device(given.device))
    if given.loading:
        text += "\n" + loading_table(given.most_clips)
    keep("train-cuda" if on_gpu else "train", text)


if __name__ == "__main__":
    main()
