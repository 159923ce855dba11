"""How tightly features of one class stand together: what EC-STFL sets out to improve."""

from typing import Any, NamedTuple

import numpy as np

from pthnet.errors import ModelError


class Spread(NamedTuple):
    """Mean L1 distance between two samples of one class, of two classes, and the former over the latter."""

    intra: float
    inter: float
    ratio: float


def feature_spread(features: Any, labels: Any) -> Spread:
    """Distances of pooled features within and between classes.

    Parameters
    ----------
    features
        float [n, D].
    labels
        int [n]; at least one class must hold two samples, and there must be two classes.

    Returns
    -------
    Spread
        The ratio does not depend on the features' scale; 1 means that classes cannot be told apart by distance.
    """
    f, y = np.asarray(features, np.float64), np.asarray(labels)
    if f.ndim != 2 or y.shape != (len(f),):
        raise ModelError(f"features must be [n, D] with n labels, found {f.shape} and {y.shape}")
    distance = np.stack([np.abs(f - row).sum(axis=1) for row in f])
    same = y[:, None] == y[None, :]
    other_sample = ~np.eye(len(y), dtype=bool)
    if not (same & other_sample).any() or same.all():
        raise ModelError("the spread needs two classes, one of them with two samples")
    intra, inter = float(distance[same & other_sample].mean()), float(distance[~same].mean())
    return Spread(intra, inter, intra / inter)
