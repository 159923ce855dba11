"""What leaving one subject out leaves on disk: one file a finished fold, so that a killed run goes on from there."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthnet.micro_expressions import PublishedScore
from storage.errors import StorageError
from tasks.loso_data import Fold
from tasks.loso_train import FoldOutcome

RUN_FILE = "run.json"
LATER_OPTIONS = {"tf32": False}  # option -> what runs from before there was one did


@dataclass(frozen=True, kw_only=True)
class LosoStudy:
    """What is trained and tested: N samples, their folds, and what identifies the run.

    Attributes
    ----------
    model
        Name for people, "HTNet" or "PTH-Net".
    classes
        In the order of the label index.
    names, datasets, subjects
        str [N].
    labels
        int64 [N].
    folds
        One for every subject.
    settings
        Everything that decides the result, as JSON; a run is resumed only under the same.
    selection
        "last" or "best-on-test".
    epochs
        For the progress display.
    published
        By data set; empty where the paper's are not public.
    """

    model: str
    classes: tuple[str, ...]
    names: NDArray[np.str_]
    datasets: NDArray[np.str_]
    subjects: NDArray[np.str_]
    labels: NDArray[np.int64]
    folds: Sequence[Fold]
    settings: Mapping[str, Any]
    selection: str
    epochs: int
    published: Mapping[str, PublishedScore] = field(default_factory=dict)


def identity_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a run from others: its settings but those that say what was always done before one could choose."""
    return {key: value for key, value in settings.items() if (key, value) not in LATER_OPTIONS.items()}


def open_run(out: Path, study: LosoStudy, *, fresh: bool = False) -> dict[int, FoldOutcome]:
    """Claim `out` for the study and return the folds that are finished there.

    Raises
    ------
    StorageError
        When another study is in `out`, and `fresh` does not say to drop it.
    """
    settings = json.loads(json.dumps(dict(study.settings)))
    before = _read(out / RUN_FILE)
    held, wanted = identity_of(before or {}), identity_of(settings)
    if before is not None and not fresh and held != wanted:
        changed = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
        raise StorageError(
            f"{out} holds a run with another {', '.join(changed)}; choose another --out, or drop it with --fresh"
        )
    if fresh:
        for path in (out / "folds").glob("*.json"):
            path.unlink()
    _write(out / RUN_FILE, json.dumps(settings, indent=1).encode())
    done = {}
    for fold in study.folds:
        record = _read(_fold_path(out, fold.number, fold.subject))
        if record is not None:
            done[fold.number] = FoldOutcome(
                fold.number,
                fold.subject,
                np.array(record["test"], np.int64),
                np.array(record["logits"], np.float32).reshape(len(record["test"]), -1),
                np.array(record["losses"]),
                int(record["epoch"]),
                float(record["seconds"]),
            )
    return done


def save_outcome(out: Path, outcome: FoldOutcome) -> None:
    """Write a finished fold, whole or not at all; its weights, when kept, as safetensors under models/."""
    path = _fold_path(out, outcome.number, outcome.subject)
    if outcome.weights is not None:
        from safetensors.torch import save

        weights = {name: tensor.contiguous() for name, tensor in outcome.weights.items()}
        _write(out / "models" / f"{path.stem}.safetensors", save(weights))
    record = {
        "number": outcome.number,
        "subject": outcome.subject,
        "test": outcome.test.tolist(),
        "logits": outcome.logits.tolist(),
        "losses": outcome.losses.tolist(),
        "epoch": outcome.epoch,
        "seconds": outcome.seconds,
    }
    _write(path, json.dumps(record).encode())


def _fold_path(out: Path, number: int, subject: str) -> Path:
    return out / "folds" / f"{number + 1:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', subject)}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
