"""The registered model as MLflow runs it (models from code): rows of videos or window features in, expressions out.

A row holds `video`, a path or s3:// URI that this process can read, or `forward` and `reverse`, each [windows, dim],
the windows of the deciding level (stride 4) in order. MLflow executes this file when it loads the model; the weights
come from the folder beside it, as safetensors. The backbone is loaded when the first video is asked for.
"""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pthnet.errors import ModelError
from pthnet.windows import LEVELS
from tasks.bundle import Bundle, load_bundle
from tasks.direct import DirectExtractor, direct_extractor
from tasks.feature_set import FeatureSet


class FusedExpressionModel(PythonModel):
    """Forward and reversed PTH-Net behind MLflow's predict."""

    bundle: Bundle

    def load_context(self, context: Any) -> None:
        """Read the folder the model was registered with."""
        self.bundle = load_bundle(context.artifacts["bundle"])
        self._extractor: DirectExtractor | None = None

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify every row.

        Returns
        -------
        DataFrame
            expression (name), confidence (of it), probabilities (all classes, in the model's order).
        """
        bundle = self.bundle
        if "video" in model_input:
            model_input = self._with_features(model_input)
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

    def _with_features(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with the features of those that name a video in place of its name."""
        found: dict[str, list[Any]] = {direction: [] for direction in self.bundle.networks}
        for row in rows.to_dict("records"):
            video = row.get("video")
            made = self._extract(video) if isinstance(video, str) and video else row
            for direction, column in found.items():
                value = made.get(direction)
                column.append(value if isinstance(value, list | np.ndarray) else None)
        return pd.DataFrame(found, index=rows.index)

    def _extract(self, video: str) -> dict[str, Any]:
        if self._extractor is None:
            self._extractor = direct_extractor(self.bundle)
        return dict(self._extractor.features(video, self.bundle.level))


def _feature_set(rows: pd.DataFrame, direction: str, bundle: Bundle) -> FeatureSet:
    """The rows' windows of one direction; every level holds all of them, as only the deciding one is read."""
    dim = bundle.networks[direction].config.in_dim
    if direction not in rows:
        raise ModelError(
            f"the model needs a column {direction!r} of window features [windows, {dim}]; "
            f"or a column 'video'; found {', '.join(map(str, rows.columns))}"
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
