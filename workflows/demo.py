"""The main job, small and real: `pthnet demo`.

Renders a labelled archive, extracts features, trains forward and reverse PTH-Net, fuses, registers and predicts: the
workflows a person runs on their own videos, called one after another with small settings.
"""

import json as json_module
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflows.predict import PredictionResult
    from workflows.train import TrainResult

BACKBONE = "tiny"  # ours, with random weights: enough to follow a drawn face, nothing to publish with
MODEL = "pthnet-demo"


@dataclass
class _Clock:
    """Seconds by step, said as they pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        from rich.console import Console

        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        Console(stderr=True).print(f"{name}: {self.seconds[name]:.1f} s", highlight=False)


def demo(
    directory: Path = Path("demo"), *, clips: int = 392, epochs: int = 15, seed: int = 0, json: bool = False
) -> int:
    """Render, extract, train, fuse, register and predict on one machine, from nothing.

    The backbone's weights are random, so the scores say that the system works, not how well published models do.
    Run again, it finds everything done and only predicts.

    Parameters
    ----------
    directory
        Receives videos, lists, features, runs and predictions.
    clips
        Clips to render; a quarter of them is held out.
    epochs
        Of both trainings.
    seed
        Of the archive, the backbone and the trainings; equal seeds give equal scores.
    json
        Print one JSON object on standard output instead of the tables.
    """
    from rich.console import Console

    from tasks.face import CLASSES
    from tasks.resolve import resolve_extractor
    from workflows import extract, predict, synth, train

    clock = _Clock()
    directory = directory.resolve()
    videos, features = directory / "videos", str(directory / "features")
    with clock.step("render"):
        synth.synth(directory, clips=clips, seed=seed)
    with clock.step("extract"):
        extractor = resolve_extractor(BACKBONE, random_weights=seed)
        extracted = extract.run(extract.listed([str(videos)]), features, extractor)
    with clock.step("train, fuse, register"):
        request = train.TrainRequest(
            features=features,
            extractor=extractor.id,
            train_list=str(directory / "lists" / "train.txt"),
            test_list=str(directory / "lists" / "test.txt"),
            classes=CLASSES,
            standardize=True,
            epochs=epochs,
            mu=0.5,  # the drawn classes are each other's reversals: neither direction knows more
            seed=seed,
            out=str(directory / "runs"),
            model_name=MODEL,
        )
        trained = train.run_training(request, Console(stderr=True))
    clip = _held_out(directory)
    model = f"models:/{MODEL}/{trained.registered[0]['version']}"
    with clock.step("predict"):
        predicted = predict.run_prediction(
            [str(videos / f"{clip}.mp4")],
            model=model,
            out=directory / "predictions",
            root=str(videos),
            tracking_uri=trained.tracking_uri,
        )
    facts = {
        "clips": clips,
        "windows": extracted.windows,
        "scores": {system: pooled(trained, system) for system in ("forward", "reverse", "fused")},
        "model": model,
        "tracking_uri": trained.tracking_uri,
        "predicted": {"clip": clip, "label": predicted.read()["label"][0].as_py()},
        "seconds": {name: round(seconds, 1) for name, seconds in clock.seconds.items()},
    }
    if json:
        print(json_module.dumps(facts))
    else:
        _show(facts, trained, predicted)
    return 0


def pooled(trained: "TrainResult", system: str) -> dict[str, float]:
    """WAR and UAR of forward, reverse or fused, fractions."""
    return {metric: round(trained.score(system, metric), 6) for metric in ("war", "uar")}


def _held_out(directory: Path) -> str:
    """A clip that no training saw."""
    first = (directory / "lists" / "test.txt").read_text().splitlines()[0]
    return first.rsplit(" ", 2)[0]


def _show(facts: dict[str, Any], trained: "TrainResult", predicted: "PredictionResult") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    held_out = sum(fold["clips"] for fold in trained.summary["folds"].values())
    table = Table(title=f"{held_out} held-out clips, per cent", title_justify="left")
    for name in ("", "WAR", "UAR"):
        table.add_column(name, justify="left" if not name else "right")
    for system, found in facts["scores"].items():
        table.add_row(system, *(f"{100 * found[metric]:.2f}" for metric in ("war", "uar")))
    console.print(table)
    label, sure = facts["predicted"]["label"], predicted.read()["confidence"][0].as_py()
    lines = [
        f"registered  {facts['model']} ({trained.registered[0]['reason']})",
        f"predicted   {facts['predicted']['clip']} is {label} ({sure:.2f})",
        f"took        {', '.join(f'{name} {seconds} s' for name, seconds in facts['seconds'].items())}",
        "next",
        f"  pthnet predict VIDEO --model {facts['model']} --out answers --tracking-uri {facts['tracking_uri']}",
        f"  mlflow ui --backend-store-uri {facts['tracking_uri']}",
        "  pthnet extract VIDEOS --features features --backbone giant --weights vit_g.pth      # your own, see README",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
