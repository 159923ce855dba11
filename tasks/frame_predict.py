"""Logits of a frame model for the samples of a list: what an actor of the prediction pool does."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from pthnet.frame_weights import DESCRIPTION, WEIGHTS, load_frame_model, load_frame_weights
from pthnet.matmul import exact_float32
from storage import files
from tasks.frame_batches import FrameBatch, upload


def open_frame_model(
    model: str, *, weights: Path | None = None, described: FrameModel | None = None
) -> tuple[FrameModel, dict[str, Any]]:
    """Description and state dict of a trained frame model.

    Parameters
    ----------
    model
        Folder, local or s3://, that fine-tuning wrote; not read when `weights` is given.
    weights, described
        Instead: a weight file of any published layout, and what it holds the weights of.
    """
    if weights is not None:
        if described is None:
            raise ModelError("a weight file needs a description of its network: model, classes and sizes")
        network = described.build()
        load_frame_weights(weights, network)
        return described, network.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        for name in (WEIGHTS, DESCRIPTION):
            try:
                (Path(folder) / name).write_bytes(files.read_bytes(files.join(model, name)))
            except (FileNotFoundError, NotADirectoryError):
                raise ModelError(f"{model} holds no {name}; give the folder model/ that finetune wrote") from None
        spec, network, _ = load_frame_model(folder)
    return spec, network.state_dict()


class FramePredictor:
    """Holds the network on its device and turns batches (one per row) into logits.

    Parameters
    ----------
    spec, state
        The network and its weights.
    precision
        "fp32", which on a GPU is not TF32, or "bf16".
    device
        "cpu" or "cuda". Not looked for: a process that Ray gave no GPU sees them all the same.
    """

    def __init__(self, spec: FrameModel, state: dict[str, Any], precision: str = "fp32", device: str = "cpu") -> None:
        self.spec, self.precision = spec, precision
        self.device = torch.device(device)
        model = spec.build()
        model.load_state_dict(state)
        self.model = model.to(self.device).eval()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Batches of `FrameBatch.to_arrow` -> index, logits (NaN where unreadable), and what could not be read."""
        index, logits, failures = [], [], []
        for position in range(len(rows)):
            batch = FrameBatch.from_arrow(rows.slice(position, 1))
            frames = upload(batch.frames, self.device)
            with (
                torch.inference_mode(),
                exact_float32(self.device),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                found = self.model(self.spec.pixels(frames)).float().cpu().numpy()
            logits.append(np.where(batch.readable[:, None], found, np.nan).astype(np.float32))
            index.append(batch.index)
            failures += batch.failures
        whole = np.concatenate(logits)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), whole.shape[1])
        columns = [
            pa.array(np.concatenate(index)),
            flat,
            pa.array([failures] + [[]] * (len(whole) - 1), pa.list_(pa.string())),
        ]
        return pa.table(columns, names=["index", "logits", "failures"])
