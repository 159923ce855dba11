"""A registered frame model as MLflow runs it (models from code): images or folders of frames in, expressions out.

A row holds `uri`, a path or s3:// URI that this process can read (an image; for clips a folder of frames), or `image`,
a JPEG or PNG in base64 (image models). MLflow executes this file when it loads the model; the weights come from the
folder beside it, as safetensors.
"""

import base64
import binascii
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from pthnet.frame_weights import load_frame_model
from tasks.frame_batches import decode_image, read_sample


class FrameExpressionModel(PythonModel):
    """A network that looks at frames behind MLflow's predict."""

    spec: FrameModel

    def load_context(self, context: Any) -> None:
        """Read the folder the model was registered with."""
        self.spec, self.model, _ = load_frame_model(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify every row.

        Returns
        -------
        DataFrame
            expression (name), confidence (of it), probabilities (all classes, in the model's order).
        """
        frames = np.stack([self._frames(row) for row in model_input.to_dict("records")])
        with torch.inference_mode():
            shares = self.model(self.spec.pixels(torch.from_numpy(frames))).double().softmax(1).numpy()
        return pd.DataFrame(
            {
                "expression": [self.spec.classes[index] for index in shares.argmax(1)],
                "confidence": shares.max(1),
                "probabilities": shares.tolist(),
            }
        )

    def _frames(self, row: dict[str, Any]) -> np.ndarray:
        from pthnet.augment import resize

        clips = self.spec.sample == "clip"
        uri, image = row.get("uri"), row.get("image")
        if isinstance(uri, str) and uri:
            try:
                return read_sample(uri, self.spec.size, clips=clips)
            except (OSError, ValueError) as error:
                raise ModelError(f"{uri}: {error}") from None
        if isinstance(image, str) and image and not clips:
            try:
                return resize(decode_image(base64.b64decode(image, validate=True))[None], self.spec.size)
            except (ValueError, binascii.Error):
                raise ModelError("image is no JPEG or PNG in base64") from None
        wanted = "uri, a folder of frames" if clips else "uri, a path, or image, a JPEG or PNG in base64"
        raise ModelError(f"a row needs {wanted}; found {', '.join(sorted(row))}")


set_model(FrameExpressionModel())
