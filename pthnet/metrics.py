"""Scores of predictions, how sure one may be of them, and how they are put together over folds.

All scores are fractions in [0, 1] and follow from the confusion counts, so a bootstrap need not look at clips again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pthnet.errors import ModelError

METRICS = ("war", "uar", "weighted_f1", "macro_f1", "uf1")


@dataclass(frozen=True)
class Scores:
    """Scores of one set of predictions.

    Attributes
    ----------
    war : float
        Weighted average recall = accuracy.
    uar : float
        Unweighted average recall: mean over the classes that occur in the target, as scikit-learn's balanced accuracy.
    weighted_f1 : float
        F1 weighted by how often a class occurs in the target.
    macro_f1 : float
        Mean F1 over the classes that occur in target or predictions, scikit-learn's default.
    uf1 : float
        Mean over all `num_classes` of 2TP / (2TP + FP + FN), a class that occurs nowhere counting 0. Differs from
        `macro_f1` only where such a class exists.
    recalls : float64 [num_classes]
        NaN for a class that does not occur in the target.
    confusion : int64 [num_classes, num_classes]
        Rows are targets, columns predictions.
    """

    war: float
    uar: float
    weighted_f1: float
    macro_f1: float
    uf1: float
    recalls: np.ndarray
    confusion: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FoldScores:
    """Scores of a k-fold benchmark, in the three ways people report them.

    Attributes
    ----------
    folds : tuple of Scores
    mean, std : dict of metric to float
        Over the folds; `std` is the population deviation (divided by k).
    pooled : Scores
        Over the predictions of all folds together.
    """

    folds: tuple[Scores, ...]
    mean: dict[str, float]
    std: dict[str, float]
    pooled: Scores


@dataclass(frozen=True)
class Reliability:
    """How well confidence matches accuracy.

    Attributes
    ----------
    confidence, accuracy : float64 [bins]
        Means in each bin of equal width over [0, 1]; NaN in an empty one.
    count : int64 [bins]
    ece : float
        Expected calibration error: mean of |accuracy - confidence| over the predictions.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ece: float


def scores(target: np.ndarray, predicted: np.ndarray, num_classes: int) -> Scores:
    """Score predicted labels.

    Parameters
    ----------
    target, predicted : int [n]
        Labels in ``0 .. num_classes - 1``, at least one.
    num_classes : int

    Raises
    ------
    ModelError
        For no predictions, unequal lengths or labels outside the classes.
    """
    counts = confusion_counts(target, predicted, num_classes)
    found = _metrics(counts)
    with np.errstate(invalid="ignore"):
        recalls = np.diag(counts) / counts.sum(axis=1)
    return Scores(**{name: float(found[name]) for name in METRICS}, recalls=recalls, confusion=counts)


def confusion_counts(target: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 [num_classes, num_classes]; rows are targets, columns predictions."""
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.ndim != 1 or target.shape != predicted.shape or len(target) == 0:
        raise ModelError(
            f"target and predicted must be equally long, one label per clip, and not empty; "
            f"found {list(target.shape)} and {list(predicted.shape)}"
        )
    for name, labels in (("target", target), ("predicted", predicted)):
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
            raise ModelError(
                f"{name} labels must be integers in 0..{num_classes - 1}; "
                f"found {labels.dtype} in {labels.min()}..{labels.max()}"
            )
    cells = target.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def bootstrap_interval(
    target: np.ndarray,
    predicted: np.ndarray,
    metric: str = "uar",
    *,
    num_classes: int | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a score over resampled clips.

    Drawing clips with replacement is drawing confusion cells from a multinomial, so all `n` samples are one array.

    Parameters
    ----------
    target, predicted : int [clips]
    metric : one of `METRICS`
    num_classes : int, optional
        Largest label + 1 when left out.
    n : int
        Samples.
    seed : int
    level : float
        Share of samples inside the interval.
    """
    if metric not in METRICS:
        raise ModelError(f"metric must be one of {', '.join(METRICS)}; found {metric!r}")
    if num_classes is None:
        num_classes = int(max(np.max(target, initial=0), np.max(predicted, initial=0))) + 1
    counts = confusion_counts(target, predicted, num_classes)
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=n)
    values = _metrics(drawn.reshape(n, num_classes, num_classes))[metric]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(_metrics(counts)[metric]), low=float(low), high=float(high))


def fold_scores(folds: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> FoldScores:
    """Scores per fold, their mean and deviation, and pooled over all predictions.

    Parameters
    ----------
    folds : sequence of (target, predicted)
        At least one.
    num_classes : int
    """
    if not folds:
        raise ModelError("fold scores need at least one fold; found none")
    each = tuple(scores(target, predicted, num_classes) for target, predicted in folds)
    table = {name: np.array([getattr(fold, name) for fold in each]) for name in METRICS}
    pooled = scores(np.concatenate([t for t, _ in folds]), np.concatenate([p for _, p in folds]), num_classes)
    return FoldScores(
        folds=each,
        mean={name: float(values.mean()) for name, values in table.items()},
        std={name: float(values.std()) for name, values in table.items()},
        pooled=pooled,
    )


def majority_baseline(train: np.ndarray, target: np.ndarray, num_classes: int) -> Scores:
    """Scores of always answering the most frequent training class: the floor any model must clear."""
    train = np.asarray(train)
    counts = confusion_counts(train, train, num_classes)
    return scores(target, np.full(len(target), int(np.diag(counts).argmax())), num_classes)


def reliability(target: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins of equal width, and the expected calibration error (Guo et al., 2017).

    Parameters
    ----------
    target : int [n]
    probabilities : float [n, num_classes]
        Rows sum to 1; logits are refused.
    bins : int
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or np.any(probabilities < 0) or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ModelError("reliability needs probabilities [n, classes] whose rows sum to 1; apply a softmax to logits")
    predicted = probabilities.argmax(axis=1)
    confusion_counts(target, predicted, probabilities.shape[1])
    confidence = probabilities.max(axis=1)
    inside = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (low, high]
    count = np.bincount(inside, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(inside, confidence, minlength=bins) / count
        accuracy = np.bincount(inside, predicted == np.asarray(target), minlength=bins) / count
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    return Reliability(mean_confidence, accuracy, count, float((gaps * count).sum() / count.sum()))


def _metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """All of METRICS for confusion counts [..., classes, classes]; each [...]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    actual = confusion.sum(axis=-1)
    claimed = confusion.sum(axis=-2)
    total = actual.sum(axis=-1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(actual + claimed, 1)  # 2TP + FP + FN = actual + claimed
    return {
        "war": hits.sum(axis=-1) / total,
        "uar": recall.sum(axis=-1) / (actual > 0).sum(axis=-1),
        "weighted_f1": (f1 * actual).sum(axis=-1) / total,
        "macro_f1": f1.sum(axis=-1) / (actual + claimed > 0).sum(axis=-1),
        "uf1": f1.mean(axis=-1),
    }
