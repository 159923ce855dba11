"""What EC-STFL and CFC-SP claim, on drawn faces: `python benchmarks/frame_claims.py` -> results/frame_claims.md.

Three claims: EC-STFL lowers the distance within classes against that between them; the coarse-to-fine cascade beats one
flat network; smoothing raises macro F1 when single frames are spoilt. Small networks, one process, a few minutes.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pthnet.augment import AUGMENT
from pthnet.cascade import ABAW, cascade, cascade_probabilities, smooth
from pthnet.emotions import label_map
from pthnet.frame_models import FrameModel
from pthnet.metrics import scores
from pthnet.spread import feature_spread
from tasks.finetune import fine_tune
from tasks.finetune_state import FinetuneSettings
from tasks.frame_batches import FrameLoader, local_batches
from tasks.frame_lists import read_frames
from tasks.frame_schedule import FrameSchedule, class_balance
from workflows.finetune import classes_of, head_labels
from workflows.synth_frames import synth_frames


def train(
    train_list: Path, test_list: Path, root: Path, *, head: str, labels: str, size: int, width: int,
    depths: Sequence[int], settings: FinetuneSettings,
) -> tuple[Any, torch.nn.Module, FrameLoader, np.ndarray]:  # fmt: skip
    """Train one small ResNet on images; spec, network, loader and logits of the test rows (NaN without a face)."""
    known = label_map(labels)
    tables = [read_frames(str(path), root=str(root), labels=known) for path in (train_list, test_list)]
    targets = [head_labels(table, head) for table in tables]
    spec = FrameModel(
        model="resnet18", classes=classes_of(known.classes, head), head=head, image_size=size, width=width,
        depths=tuple(depths),
    )  # type: ignore[arg-type]  # fmt: skip
    usable = np.flatnonzero((targets[0] >= 0) & tables[0]["present"].to_numpy())
    schedule = FrameSchedule(
        train=usable,
        validation=np.flatnonzero(tables[1]["present"].to_numpy()),
        repeats=class_balance(targets[0][usable]) if settings.balanced else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    loader = FrameLoader(
        train=tables[0], validation=tables[1], train_labels=targets[0], validation_labels=targets[1],
        schedule=schedule, size=size, augment=AUGMENT[settings.augment].at(size),
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    model = spec.build()
    state = fine_tune(model, spec, settings, loader, local_batches(loader))
    assert state.logits is not None
    return spec, model.eval(), loader, state.logits.numpy()


def ecstfl_claim(
    folder: Path, *, size: int, width: int, depths: Sequence[int], epochs: int, seed: int
) -> dict[str, Any]:
    """Test-set distance ratio and accuracy with and without EC-STFL, from the same weights and order."""
    found = {}
    for name, gamma in (("CE", 0.0), ("CE + 10 EC-STFL", 10.0)):
        settings = FinetuneSettings(
            gamma=gamma, epochs=epochs, step_epochs=max(1, epochs // 2), augment="cfc-sp", seed=seed
        )
        spec, model, loader, logits = train(
            folder / "lists/images_train.csv", folder / "lists/images_test.csv", folder / "images",
            head="all", labels="dfew", size=size, width=width, depths=depths, settings=settings,
        )  # fmt: skip
        features, labels = [], []
        with torch.inference_mode():
            for page in (p for p in loader.schedule.pages() if not p.training and p.epoch == 0):
                for batch in loader.load(page):
                    features.append(model.features(spec.pixels(torch.from_numpy(batch.frames))))  # type: ignore[operator]
                    labels.append(batch.labels)
        spread = feature_spread(torch.cat(features).numpy(), np.concatenate(labels))
        war = scores(loader.validation_labels, logits.argmax(1), len(spec.classes)).war
        found[name] = {"intra": spread.intra, "inter": spread.inter, "ratio": spread.ratio, "war": war}
    return found


def cascade_claim(
    folder: Path, *, size: int, width: int, depths: Sequence[int], epochs: int, seed: int
) -> dict[str, float]:
    """Macro F1 over eight classes on the test videos: flat and cascade, with and without smoothing."""
    settings = FinetuneSettings(
        optimizer="adamw", lr=2e-3, weight_decay=0.05, epochs=epochs, decay="cosine", warmup_epochs=1.0,
        label_smoothing=0.1, balanced=True, augment="cfc-sp", seed=seed,
    )  # fmt: skip
    outputs, rows = {}, None
    for head in ("all", "coarse", "negative"):
        _, _, loader, logits = train(
            folder / "EXPR/train", folder / "EXPR/val", folder / "faces",
            head=head, labels="affwild2", size=size, width=width, depths=depths, settings=settings,
        )  # fmt: skip
        outputs[head], rows = logits, loader.validation
    assert rows is not None
    labels = head_labels(rows, "all")
    videos = np.asarray(rows["video"].to_pylist())
    face = rows["present"].to_numpy(zero_copy_only=False).astype(bool)
    soft = {head: smooth(logits, videos, face) for head, logits in outputs.items()}
    raw = {head: np.where(face[:, None], logits, 0.0) for head, logits in outputs.items()}
    predicted = {
        "flat": raw["all"].argmax(1),
        "flat, smoothed": soft["all"].argmax(1),
        "cascade": cascade(raw["coarse"], raw["negative"]),
        "cascade, smoothed": cascade(soft["coarse"], soft["negative"]),
        "cascade by probability, smoothed": cascade_probabilities(soft["coarse"], soft["negative"]).argmax(1),
    }
    scored = (labels >= 0) & face  # frames without a face have no unsmoothed prediction to compare with
    return {name: scores(labels[scored], p[scored], len(ABAW.classes)).macro_f1 for name, p in predicted.items()}


def main() -> None:
    """Measure all three over seeds and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=16)
    options.add_argument("--cascade-epochs", type=int, default=8)
    options.add_argument("--noise", type=float, default=0.3, help="share of spoilt frames")
    options.add_argument("--weakest", type=float, default=0.35, help="least strength of an expression; lower is harder")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results/frame_claims.md")
    given = options.parse_args()
    sizes: dict[str, Any] = {"size": 48, "width": 12, "depths": (1, 1, 1)}
    spread, quiet, noisy = [], [], []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as place:
            for name, noise, found in (("quiet", 0.0, quiet), ("noisy", given.noise, noisy)):
                folder = Path(place) / name
                synth_frames(
                    folder, videos=24, frames=150, clips=0, images=840, size=48, noise=noise, weakest=0.05, seed=seed
                )
                if noise:
                    spread.append(ecstfl_claim(folder, epochs=given.epochs, seed=seed, **sizes))
                found.append(cascade_claim(folder, epochs=given.cascade_epochs, seed=seed, **sizes))
                print(seed, name, found[-1], spread[-1:], flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(spread, quiet, noisy, given))


def page(
    spread: list[dict[str, Any]],
    quiet: list[dict[str, float]],
    noisy: list[dict[str, float]],
    given: argparse.Namespace,
) -> str:
    """The results as Markdown."""
    lines = [
        "# The claims of EC-STFL and CFC-SP on drawn faces",
        "",
        f"`python benchmarks/frame_claims.py`: ResNets of three stages and width 12 at 48 pixels, {len(spread)} seeds "
        "(data, weights and order), mean and population deviation over them. "
        f"Expressions are at least {given.weakest:.0%} strong. Drawn faces are easy and small: these numbers say that "
        "the pieces work as meant, not how well they do on people.",
        "",
        f"## EC-STFL: distances of pooled features on the test images ({given.epochs} epochs)",
        "",
        "| loss | within / between classes (L1) | accuracy % |",
        "|---|---:|---:|",
    ]
    for name in spread[0]:
        ratio, war = ([run[name][key] for run in spread] for key in ("ratio", "war"))
        lines.append(f"| {name} | {np.mean(ratio):.3f} ± {np.std(ratio):.3f} | {_percent(war)} |")
    lower = sum(run["CE + 10 EC-STFL"]["ratio"] < run["CE"]["ratio"] for run in spread)
    lines += ["", f"EC-STFL lowers the ratio in {lower} of {len(spread)} runs.", ""]
    lines += [
        f"## CFC-SP: macro F1 over eight classes on the test videos, % ({given.cascade_epochs} epochs)",
        "",
        f"| system | clean frames | {given.noise:.0%} spoilt frames |",
    ]
    lines.append("|---|---:|---:|")
    lines += [
        f"| {name} | {_percent([r[name] for r in quiet])} | {_percent([r[name] for r in noisy])} |" for name in quiet[0]
    ]
    for runs, kind in ((quiet, "clean"), (noisy, "spoilt")):
        wins = sum(run["cascade, smoothed"] > run["flat, smoothed"] for run in runs)
        gain = 100 * np.mean([run["cascade, smoothed"] - run["flat, smoothed"] for run in runs])
        raised = sum(run["cascade, smoothed"] > run["cascade"] for run in runs)
        lines += [
            "",
            f"On {kind} frames the smoothed cascade beats the smoothed flat network in {wins} of {len(runs)} runs "
            f"({gain:+.2f} points on average); smoothing raises the cascade in {raised} of {len(runs)}.",
        ]
    return "\n".join(lines) + "\n"


def _percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values):.2f}"


if __name__ == "__main__":
    main()
