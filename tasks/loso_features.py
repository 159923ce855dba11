"""PTH-Net on CASME II, one subject left out at a time: 26 subjects, five classes, features instead of flow images."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pthnet.benchmarks import Benchmark, find_benchmark
from pthnet.pth_net import PTHNetConfig
from storage.errors import StorageError
from storage.features import FeatureTable
from storage.lists import read_list
from tasks.evaluate import data_digest, fuse
from tasks.feature_set import FeatureSet, Split, choose_extractor, load_feature_set, present, refuse_missing
from tasks.loso_data import Fold, leave_one_out, refuse_leakage
from tasks.loso_results import LosoStudy
from tasks.loso_train import FoldOutcome, Report
from tasks.sampling import DeviceTable
from tasks.train import TrainSettings, train

NONE = np.zeros(0, np.int64)


def casme2_study(
    features: str,
    *,
    annotations: str | None,
    lists: Path | None,
    extractor: str | None,
    mu: float,
    epochs: int | None,
    batch: int | None,
    lr: float | None,
    dim: int | None,
    selection: Literal["last", "best-on-test"],
    seed: int,
) -> tuple[LosoStudy, tuple[Any, ...], TrainSettings]:
    """Read clips, labels, folds and both directions' features.

    Parameters
    ----------
    features
        Feature table.
    annotations, lists
        One list of all clips, or a folder with set_<k>_train.txt and set_<k>_test.txt.
    extractor
        Which features, when the table holds several.
    mu
        Weight of the forward network's logits.
    epochs, batch, lr, dim
        None takes FERV39k's published settings.

    Raises
    ------
    StorageError
        For clips without features or subject, and for folds that train on whom they test.
    """
    casme2 = find_benchmark("CASME-II")
    clip_ids, labels, given = _read_lists(casme2, annotations, lists)
    subjects = np.array([_subject(casme2, clip) for clip in clip_ids])
    folds = given or leave_one_out(subjects)
    refuse_leakage(folds, subjects)
    table = FeatureTable(features)
    keys = table.keys()
    chosen = choose_extractor(sorted(set(keys["extractor"].to_pylist())), extractor, features)
    refuse_missing(clip_ids, present(keys, chosen), features, allow=False)
    version = table.version()
    sets = [
        load_feature_set(features, clip_ids, labels, direction=direction, extractor=chosen, version=version)
        for direction in ("forward", "reverse")
    ]
    if any(clip_ids != held.clip_ids.tolist() for held in sets):
        raise StorageError(f"{features} returned other clips than the list names; run the same command again")
    schedule = casme2.schedule
    settings = TrainSettings(
        model=PTHNetConfig(in_dim=sets[0].dim, dim=dim or 512, num_classes=casme2.num_classes),
        epochs=epochs or schedule.epochs,
        milestones=schedule.milestones,
        batch=batch or schedule.batch_size,
        lr=lr or schedule.learning_rate,
        selection=selection,
        seed=seed,
    )
    identity = {
        **settings.to_dict(),
        "model": "pthnet",
        "network": str(settings.model),
        "mu": mu,
        "extractor": chosen,
        "data": data_digest(sets[0].clip_ids, sets[0].labels),
        "table_version": version,
    }
    study = LosoStudy(
        model=f"PTH-Net (fused, mu {mu:g})",
        classes=casme2.classes,
        names=np.array(clip_ids),
        datasets=np.full(len(clip_ids), "CASME II"),
        subjects=subjects,
        labels=labels,
        folds=folds,
        settings=json.loads(json.dumps(identity)),
        selection=selection,
        epochs=settings.epochs,
    )
    return study, (*sets, mu), settings


def _read_lists(
    casme2: Benchmark, annotations: str | None, lists: Path | None
) -> tuple[list[str], NDArray[np.int64], list[Fold] | None]:
    if annotations is not None:
        rows = read_list(annotations, class_names=casme2.classes)
        return rows["clip_id"].to_pylist(), _checked(rows["label"].to_numpy(), casme2, annotations), None
    assert lists is not None
    pairs = []
    for fold in casme2.folds:
        paths = [lists / name for name in (fold.train, fold.test)]
        if all(path.exists() for path in paths):
            pairs.append([read_list(str(path), class_names=casme2.classes) for path in paths])
    if not pairs:
        raise StorageError(
            f"{lists} holds no {casme2.folds[0].train} with {casme2.folds[0].test}; use --annotations for one list"
        )
    label_of: dict[str, int] = {}
    for pair in pairs:
        for part in pair:
            for clip, label in zip(part["clip_id"].to_pylist(), part["label"].to_pylist(), strict=True):
                if label_of.setdefault(clip, label) != label:
                    raise StorageError(f"{lists}: {clip} has label {label} in one list and {label_of[clip]} in another")
    clip_ids = list(label_of)
    position = {clip: row for row, clip in enumerate(clip_ids)}
    folds = []
    for number, (train_part, test_part) in enumerate(pairs):
        rows = [
            np.array([position[c] for c in part["clip_id"].to_pylist()], np.int64) for part in (train_part, test_part)
        ]
        owner = _subject(casme2, clip_ids[rows[1][0]])
        folds.append(Fold(number, owner, rows[0], rows[1]))
    return clip_ids, _checked(np.array(list(label_of.values())), casme2, str(lists)), folds


def _subject(casme2: Benchmark, clip_id: str) -> str:
    """Who is seen: told by the clip's name ("sub01_EP02_01f") or by a folder above it ("sub01/EP02_01f")."""
    for part in reversed(clip_id.split("/")):
        if (number := casme2.subject(part)) is not None:
            return f"sub{number}"
    raise StorageError(f"clip {clip_id!r} does not name its subject; expected sub01_EP02_01f or sub01/EP02_01f")


def _checked(labels: NDArray[Any], casme2: Benchmark, where: str) -> NDArray[np.int64]:
    if labels.min() < 0 or labels.max() >= casme2.num_classes:
        raise StorageError(
            f"{where}: labels are {labels.min()}..{labels.max()}, expected 0..{casme2.num_classes - 1} "
            f"({', '.join(casme2.classes)})"
        )
    return labels.astype(np.int64)


def train_pthnet_folds(
    forward: FeatureSet,
    reverse: FeatureSet,
    mu: float,
    folds: Sequence[Fold],
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    keep_weights: bool = False,
) -> list[FoldOutcome]:
    """Train both directions of every fold and fuse their logits on the left-out subject; losses are forward's."""
    device = torch.device(device)
    tables = [(held, DeviceTable(held, device)) for held in (forward, reverse)]
    outcomes = []
    for fold in folds:
        began = time.perf_counter()
        split = Split(fold=fold.subject, train=fold.train, validation=NONE, test=fold.test)
        states = []
        for number, (held, table) in enumerate(tables):
            own = replace(settings, seed=settings.seed + 1000 * fold.number + number)
            states.append(train(held, split, own, table=table))
            if report:
                report(settings.epochs * (number + 1) // 2, states[-1].history[-1]["loss"])
        logits = fuse(states[0].logits["test"].numpy(), states[1].logits["test"].numpy(), mu)
        weights = {
            f"{name}.{key}": value.detach().cpu()
            for name, state in zip(("forward", "reverse"), states, strict=True)
            for key, value in state.weights.items()
        }
        outcomes.append(
            FoldOutcome(
                fold.number,
                fold.subject,
                fold.test,
                logits,
                np.array([record["loss"] for record in states[0].history]),
                states[0].selected_epoch,
                time.perf_counter() - began,
                weights if keep_weights else None,
            )
        )
    return outcomes
