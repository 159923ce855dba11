"""The numbers a training ends with: per fold, mean and deviation, pooled, with intervals, floor and published row."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pthnet.benchmarks import Benchmark
from pthnet.metrics import METRICS, bootstrap_interval, fold_scores, majority_baseline, scores

SHOWN = ("war", "uar")


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What was predicted on the test clips of one fold.

    Attributes
    ----------
    fold : str
    clip_ids : str [n]
    target : int64 [n]
    train_labels : int64
        For the majority-class floor.
    logits : dict of system to float32 [n, classes]
        "forward", "reverse", "fused" and what else is compared ("fused, last epoch").
    mu : float
        The weight behind "fused".
    epochs : dict of direction to int
        The epoch (from 1) whose weights are used.
    """

    fold: str
    clip_ids: np.ndarray
    target: np.ndarray
    train_labels: np.ndarray
    logits: dict[str, np.ndarray]
    mu: float
    epochs: dict[str, int]


def summarize(results: Sequence[FoldResult], classes: Sequence[str], *, samples: int = 1000) -> dict[str, Any]:
    """All scores as plain JSON (fractions, not per cent).

    Returns
    -------
    dict
        systems: name -> {folds: {fold: scores}, mean, std, pooled: scores, interval: {metric: [low, high]}, recalls};
        majority: {folds, mean, pooled}; folds: name -> {clips, mu, epochs}.
    """
    count = len(classes)
    systems: dict[str, Any] = {}
    for name in results[0].logits:
        pairs = [(result.target, result.logits[name].argmax(1)) for result in results]
        found = fold_scores(pairs, count)
        target, predicted = (np.concatenate(part) for part in zip(*pairs, strict=True))
        intervals = {
            metric: bootstrap_interval(target, predicted, metric, num_classes=count, n=samples) for metric in METRICS
        }
        systems[name] = {
            "folds": {result.fold: _plain(each) for result, each in zip(results, found.folds, strict=True)},
            "mean": found.mean,
            "std": found.std,
            "pooled": _plain(found.pooled),
            "interval": {metric: [value.low, value.high] for metric, value in intervals.items()},
            "recalls": {name: _number(value) for name, value in zip(classes, found.pooled.recalls, strict=True)},
        }
    floors = [majority_baseline(result.train_labels, result.target, count) for result in results]
    answered = np.concatenate([np.full(len(r.target), np.bincount(r.train_labels).argmax()) for r in results])
    pooled = scores(np.concatenate([result.target for result in results]), answered, count)
    majority = {
        "folds": {result.fold: _plain(floor) for result, floor in zip(results, floors, strict=True)},
        "mean": {metric: float(np.mean([getattr(floor, metric) for floor in floors])) for metric in METRICS},
        "pooled": _plain(pooled),
    }
    folds = {result.fold: {"clips": len(result.target), "mu": result.mu, "epochs": result.epochs} for result in results}
    return {"systems": systems, "majority": majority, "folds": folds}


def published_rows(benchmark: Benchmark) -> dict[str, dict[str, dict[str, float]]]:
    """The paper's scores as fractions: view -> model -> {uar, war}; empty where they are not public."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for score in benchmark.scores:
        rows.setdefault(score.view, {})[score.model] = {"uar": score.uar / 100, "war": score.war / 100}
    return rows


def table_rows(summary: Mapping[str, Any], published: Mapping[str, Any], systems: Sequence[str]) -> list[list[str]]:
    """The final table's rows: a name, then "WAR / UAR" of every system in per cent."""
    found = summary["systems"]
    folds = list(summary["folds"])

    def pair(values: Mapping[str, float]) -> str:
        return " / ".join(percent(values[metric]) for metric in SHOWN)

    rows = []
    if len(folds) > 1:
        rows += [[f"fold {fold}", *(pair(found[system]["folds"][fold]) for system in systems)] for fold in folds]
        rows.append(["mean of folds", *(pair(found[system]["mean"]) for system in systems)])
        rows.append(["  deviation", *(pair(found[system]["std"]) for system in systems)])
    rows.append(["pooled" if len(folds) > 1 else "test", *(pair(found[system]["pooled"]) for system in systems)])
    for metric in SHOWN:
        low_high = ("–".join(percent(value) for value in found[system]["interval"][metric]) for system in systems)
        rows.append([f"  95 % of {metric.upper()}", *low_high])
    rows.append(["majority class", *(pair(summary["majority"]["pooled"]) for _ in systems)])
    for view, models in published.items():
        rows.append([f"published, {view} *", *(pair(models[system]) if system in models else "" for system in systems)])
    return rows


def percent(value: float, decimals: int = 2) -> str:
    """A fraction in per cent."""
    return f"{100 * value:.{decimals}f}"


def _plain(score: Any) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(score).items() if name in METRICS}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
