"""Training throughput of the frame pipeline against a plain PyTorch DataLoader loop.

    python -m benchmarks.finetune                    # -> benchmarks/results/finetune.md
    python -m benchmarks.finetune --device cuda      # -> benchmarks/results/finetune-cuda.md

Same network, images, augmentation, optimizer, batch order and threads on the same machine; only the data path differs:
Ray Data tasks that make whole batches ahead, against DataLoader workers that make samples. The two take turns and each
is timed over whole epochs after a warm-up one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import keep, machine
from cluster.connect import connect
from pthnet.augment import AUGMENT
from pthnet.emotions import label_map
from pthnet.frame_models import FrameModel
from tasks.finetune import fine_tune
from tasks.finetune_state import FinetuneSettings
from tasks.frame_batches import FrameLoader, ray_batches, read_image
from tasks.frame_lists import read_frames
from tasks.frame_schedule import FrameSchedule
from workflows.synth_frames import synth_frames


class Images(Dataset):
    """A map-style dataset as people write it: read, augment, return one sample."""

    def __init__(self, loader: FrameLoader) -> None:
        self.uris = loader.train["uri"].to_pylist()
        self.labels = loader.train_labels
        self.augment = loader.augment

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        import cv2

        cv2.setNumThreads(1)
        assert self.augment is not None
        frames = self.augment(read_image(self.uris[index])[None], np.random.default_rng())
        return torch.from_numpy(frames), int(self.labels[index])


def plain_loop(
    loader: FrameLoader, spec: FrameModel, settings: FinetuneSettings, workers: int, device: torch.device
) -> Iterator[float]:
    """Seconds of each epoch of an ordinary training loop; to a GPU by pinned copies that it does not wait for."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    model = spec.build().to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=1e-4, fused=on_gpu or None
    )
    data = DataLoader(
        Images(loader), batch_size=settings.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, multiprocessing_context="spawn" if workers else None,  # Ray has threads
        pin_memory=on_gpu,
    )  # fmt: skip
    while True:
        began = time.perf_counter()
        for frames, labels in data:
            there, target = frames.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = F.cross_entropy(model(spec.pixels(there)), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize(device)
        yield time.perf_counter() - began


def ours(
    loader: FrameLoader, spec: FrameModel, settings: FinetuneSettings, workers: int, device: torch.device
) -> list[dict[str, float]]:
    """Records of each epoch of the project's training."""
    torch.manual_seed(0)
    batches = ray_batches(loader, cpus=workers)
    return fine_tune(spec.build(), spec, settings, loader, batches, device=device).history


def measure(
    spec: FrameModel, folder: Path, *, epochs: int, rounds: int, workers: int, threads: int, device: torch.device
) -> dict[str, Any]:
    """Samples per second of both, medians over the timed epochs."""
    torch.set_num_threads(threads)
    settings = FinetuneSettings(epochs=epochs + 1, batch_size=32, gamma=0.0, augment="ec-stfl-image")
    table = read_frames(str(folder / "lists/images_train.csv"), root=str(folder / "images"), labels=label_map("dfew"))
    labels = table["label"].to_numpy().astype(np.int64)
    loader = FrameLoader(
        train=table, validation=table.slice(0, 0), train_labels=labels, validation_labels=labels[:0],
        schedule=FrameSchedule(train=np.arange(len(table)), batch_size=32, epochs=epochs + 1),
        size=spec.size, augment=AUGMENT["ec-stfl-image"].at(spec.size),
    )  # fmt: skip
    seen = loader.schedule.steps(0) * 32
    plain, mine, waited = [], [], []
    for number in range(rounds):
        loop = plain_loop(loader, spec, settings, workers, device)
        next(loop)
        plain += [seen / next(loop) for _ in range(epochs)]
        loop.close()
        turn = replace(settings, seed=number)
        turned = replace(loader, schedule=replace(loader.schedule, seed=number))
        records = ours(turned, spec, turn, workers, device)[1:]
        mine += [record["samples_per_s"] for record in records]
        waited += [record["waited_share"] for record in records]
        print(f"round {number + 1}: plain {np.median(plain):.1f}, ours {np.median(mine):.1f} samples/s", flush=True)
    return {
        "plain": float(np.median(plain)),
        "ours": float(np.median(mine)),
        "ratio": float(np.median(mine) / np.median(plain)),
        "spread": (min(mine) / max(plain), max(mine) / min(plain)),
        "waited": float(np.median(waited)),
    }


def main() -> None:
    """Measure three sizes of work and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    options.add_argument("--images", type=int, help="512; 2048 on a GPU, whose epochs would be too short to time")
    options.add_argument("--workers", type=int, help="1; half the cores beside a GPU, which they are to feed")
    options.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    given = options.parse_args()
    on_gpu = given.device == "cuda"
    given.images = given.images or (2048 if on_gpu else 512)
    given.workers = given.workers or (max(1, len(os.sched_getaffinity(0)) // 2) if on_gpu else 1)
    classes = label_map("dfew").classes
    sizes = {
        "ResNet of width 16, 64 pixels": FrameModel(model="resnet18", classes=classes, image_size=64, width=16),
        "ResNet-18, 112 pixels": FrameModel(model="resnet18", classes=classes, image_size=112),
        "ResNet-18, 224 pixels": FrameModel(model="resnet18", classes=classes),
    }
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synth_frames(folder, videos=0, clips=0, images=given.images, size=112, test_share=0.0)
        connect(num_cpus=given.workers + 1)
        for name, spec in sizes.items():
            heavy = spec.size == 224 and not on_gpu
            rounds, epochs = (max(1, given.rounds - 1), 1) if heavy else (given.rounds, given.epochs)
            found = measure(
                spec, folder, epochs=epochs, rounds=rounds, workers=given.workers, threads=given.threads,
                device=torch.device(given.device),
            )  # fmt: skip
            low, high = found["spread"]
            rows.append(
                f"| {name} | {found['plain']:.1f} | {found['ours']:.1f} | {found['ratio']:.2f} "
                f"| {low:.2f} to {high:.2f} | {100 * found['waited']:.0f} |"
            )
            print(rows[-1], flush=True)
    text = [
        "# Training throughput of the frame models",
        "",
        f"`python -m benchmarks.finetune --device {given.device}`: {given.images} JPEG images of 112 pixels, batch 32, "
        f"float32{' (convolutions in TF32, as PyTorch has it)' if on_gpu else ''}, "
        f"{given.threads} compute thread(s) and {given.workers} data worker(s) on both sides; medians over the epochs "
        "after the first. The plain loop is a DataLoader with persistent workers over the same reading and "
        "augmentation code. Both take "
        f"turns on one machine, whose load average at the end was {os.getloadavg()[0]:.1f}: above its cores, rows are "
        f"noise to the width of their slowest to fastest epoch. {machine()}.",
        "",
        "| network | plain, images/s | ours, images/s | ours / plain | slowest to fastest | waiting for data, % |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    keep("finetune-cuda" if on_gpu else "finetune", "\n".join(text))


if __name__ == "__main__":
    main()
