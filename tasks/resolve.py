"""Which extractor is meant: backbone, weights and rules as a person names them, made into the exact specification."""

from collections.abc import Sequence
from typing import Any

from pthnet.errors import ModelError
from pthnet.extractor import Extractor


def resolve_extractor(
    backbone: str,
    *,
    weights: str | None = None,
    random_weights: int | None = None,
    precision: str = "auto",
    device: str = "cpu",
    tail: str = "cover",
    normalize: str = "none",
    directions: Sequence[str] = ("forward", "reverse"),
) -> Extractor:
    """Load (or draw) the weights once to fingerprint them, and refuse those that do not fit the backbone.

    Parameters
    ----------
    backbone
        "tiny", "small" ... "giant".
    weights
        Path or URI of a checkpoint.
    random_weights
        Seed to draw weights from instead.
    precision
        "auto", "fp32" or "bf16"; auto asks `device`.

    Raises
    ------
    ModelError
        For neither or both kinds of weights, an unknown backbone, or weights that do not fit it.
    """
    from pthnet.backbone import build_backbone
    from storage.copies import local_copy

    if (weights is None) == (random_weights is None):
        raise ModelError(
            "give either --weights FILE (a VideoMAE V2 checkpoint) or --random-weights SEED (to try things out)"
        )
    # On the CPU whatever the device: only the specification is wanted here, and the precision is the device's.
    rules: dict[str, Any] = {
        "precision": _precision(precision, device),
        "tail": tail,
        "normalize": normalize,
        "directions": tuple(directions),
    }
    if weights is None:
        return build_backbone(backbone, seed=random_weights or 0, **rules).extractor
    with local_copy(weights) as path:
        return build_backbone(backbone, weights=path, **rules).extractor


def _precision(precision: str, device: str) -> str:
    if precision != "auto":
        return precision
    from pthnet.backbone import default_precision

    # A GPU of the cluster need not be on this machine, so the device is named, not looked for.
    return "bf16" if device == "cuda" else default_precision("cpu")
