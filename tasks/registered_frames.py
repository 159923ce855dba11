"""Frame models in the registry: no pickle, `candidate`, and `champion` when better on the same validation list."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from tasks.champion import CANDIDATE, judge, settle
from tasks.registered import Registered, requirements
from tasks.tracking import Tracker, at


def register_frames(
    tracker: Tracker,
    run_id: str,
    folder: str | Path,
    spec: FrameModel,
    name: str,
    *,
    scores: dict[str, float],
    data: str,
) -> Registered:
    """Log a folder of `save_frame_model` as a model of the run, register it and decide who is champion.

    Parameters
    ----------
    tracker, run_id
        The run it belongs to.
    folder
        Holds model.json and model.safetensors.
    name
        Of the registered model.
    scores
        uar and war on the validation list.
    data
        Digest of that list: versions are compared on the same one only.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    root = Path(__file__).resolve().parent.parent
    columns = ["uri"] if spec.sample == "clip" else ["uri", "image"]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, column, required=False) for column in columns]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "expression"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )
    tags = {"uar": repr(scores["uar"]), "war": repr(scores["war"]), "evaluation_data": data, "pthnet.model": spec.model}
    with at(tracker.uri):
        import mlflow

        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(root / "tasks" / "served_frames.py"),
                artifacts={"model": str(folder)},
                code_paths=[str(root / room) for room in ("pthnet", "storage", "tasks")],
                signature=signature,
                input_example=input_example(spec),
                pip_requirements=requirements(),
            )
        version = str(mlflow.register_model(logged.model_uri, name, tags=tags).version)
    tracker.client.set_registered_model_alias(name, CANDIDATE, version)
    decision = judge(tracker.client, name, version)
    settle(tracker.client, name, version, decision)
    return Registered(name=name, version=version, champion=decision.champion, reason=decision.reason)


def input_example(spec: FrameModel) -> Any:
    """A grey image in base64 for image models; clips are named by a folder, of which none travels along: None."""
    import cv2
    import pandas as pd

    if spec.sample == "clip":
        return None
    _, data = cv2.imencode(".png", np.full((8, 8, 3), 128, np.uint8))
    return pd.DataFrame({"image": [base64.b64encode(data.tobytes()).decode()]})


def list_digest(rows: Any, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    """Digest of what a model was scored on: samples, their labels and the classes."""
    text = json.dumps([rows["video"].to_pylist(), rows["frame"].to_pylist(), labels.tolist(), list(classes)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fetch_frames(tracking_uri: str, model: str) -> Path:
    """Local folder of a registered frame model ("models:/name@champion", "models:/name/3").

    Raises
    ------
    ModelError
        No such model, or it is no frame model.
    """
    with at(tracking_uri):
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            folder = Path(mlflow.artifacts.download_artifacts(f"{model}/artifacts"))
        except MlflowException as error:
            raise ModelError(
                f"no model {model}: {str(error).splitlines()[0]}; name its server with --tracking-uri"
            ) from None
    found = sorted(folder.glob("*/model.json"))
    if not found:
        raise ModelError(f"{model} was not registered by `pthnet finetune`: it holds no model.json")
    return found[0].parent
