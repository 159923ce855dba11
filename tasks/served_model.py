"""The registered model as MLflow runs it (models from code): rows of window features in, expressions out.

A row holds `forward` and `reverse`, each [windows, dim], the windows of the deciding level (stride 4) in order. MLflow
executes this file when it loads the model; the weights come from the folder beside it, as safetensors.
"""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pthnet.errors import ModelError
from pthnet.windows import LEVELS
from tasks.bundle import Bundle, load_bundle
from tasks.feature_set import FeatureSet


class FusedExpressionModel(PythonModel):
    """Forward and reversed PTH-Net behind MLflow's predict."""

    bundle: Bundle

    def load_context(self, context: Any) -> None:
        """Read the folder the model was registered with."""
        self.bundle = load_bundle(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify every row.

        Returns
        -------
        DataFrame
            expression (name), confidence (of it), probabilities (all classes, in the model's order).
        """
        bundle = self.bundle
        features = {direction: _feature_set(model_input, direction, bundle) for direction in bundle.networks}
        logits = bundle.logits(features, np.arange(len(model_input)))["fused"].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return pd.DataFrame(
            {
                "expression": [bundle.classes[index] for index in shares.argmax(1)],
                "confidence": shares.max(1),
                "probabilities": shares.tolist(),
            }
        )


def _feature_set(rows: pd.DataFrame, direction: str, bundle: Bundle) -> FeatureSet:
    """The rows' windows of one direction; every level holds all of them, as only the deciding one is read."""
    dim = bundle.networks[direction].config.in_dim
    if direction not in rows:
        raise ModelError(
            f"the model needs a column {direction!r} of window features [windows, {dim}]; "
            f"found {', '.join(map(str, rows.columns))}"
        )
    clips = []
    for number, value in enumerate(rows[direction]):
        clip = np.asarray(
            [np.asarray(window, dtype=np.float32) for window in value] if value is not None else [], dtype=np.float32
        )
        if clip.ndim != 2 or clip.shape[1] != dim or not len(clip):
            raise ModelError(
                f"row {number}: {direction} must be one window of {dim} numbers or more; found shape {list(clip.shape)}"
            )
        clips.append(clip)
    lengths = np.array([len(clip) for clip in clips])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return FeatureSet(
        clip_ids=np.array([str(number) for number in range(len(clips))]),
        features=np.concatenate(clips),
        offsets=offsets,
        positions=dict.fromkeys(LEVELS, positions),
        position_offsets=dict.fromkeys(LEVELS, offsets),
        labels=np.zeros(len(clips), dtype=np.int64),
        direction=direction,
    )


set_model(FusedExpressionModel())
