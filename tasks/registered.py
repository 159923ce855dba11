"""The model registry: a fused model becomes a version (no pickle), `candidate`, and `champion` when it is better."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np

from pthnet.errors import ModelError
from tasks.bundle import Bundle, load_bundle
from tasks.champion import CANDIDATE, CHAMPION, judge, settle
from tasks.model_card import CARD, model_card
from tasks.tracking import Tracker, at

__all__ = ["CANDIDATE", "CHAMPION", "Registered", "fetch", "input_example", "log_version", "register"]
REQUIREMENTS = (
    *("mlflow", "torch", "numpy", "pandas", "safetensors", "pyarrow", "deltalake", "scikit-learn", "boto3"),
    *("av", "opencv-contrib-python-headless"),  # a row may name a video
)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What registering did.

    Attributes
    ----------
    name, version : str
    champion : bool
        Whether this version is now the champion.
    reason : str
        Why, in a sentence; also kept as the version's tag `decision`.
    """

    name: str
    version: str
    champion: bool
    reason: str

    @property
    def uri(self) -> str:
        """What loads it: models:/<name>/<version>."""
        return f"models:/{self.name}/{self.version}"


def input_example(bundle: Bundle, windows: int = 3) -> Any:
    """A DataFrame of one clip of seeded numbers, the shape of a real request."""
    import pandas as pd

    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            direction: [rng.normal(size=(windows, network.config.in_dim)).round(3).tolist()]
            for direction, network in bundle.networks.items()
        }
    )


def _signature(bundle: Bundle) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    windows = Array(Array(DataType.double))
    return ModelSignature(
        # A row names a video or brings its features: neither alone is required.
        inputs=Schema(
            [
                ColSpec(DataType.string, "video", required=False),
                *(ColSpec(windows, direction, required=False) for direction in bundle.networks),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "expression"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )


def register(
    tracker: Tracker,
    run_id: str,
    bundle: Bundle,
    folder: str | Path,
    name: str,
    *,
    uar: float,
    war: float,
    data: str,
    tags: dict[str, str],
    score_champion: Callable[[Bundle], tuple[float, float] | None],
) -> Registered:
    """Log the folder as a model of the run, register it, and let `tasks.champion` decide who is champion.

    Parameters
    ----------
    tracker : Tracker
    run_id : str
        The run it belongs to.
    bundle, folder
        The model and where `save_bundle` wrote it.
    name : str
        Of the registered model.
    uar, war : float
        Its fused scores on the evaluation data.
    data : str
        Digest of the evaluation data (clips and labels).
    tags : dict
        More tags of the version.
    score_champion : callable
        (uar, war) of another bundle on the same data, or None when it cannot read these features; asked only when the
        champion was evaluated on other data.
    """
    scored = {"uar": repr(uar), "war": repr(war), "evaluation_data": data}
    version = log_version(tracker, run_id, bundle, folder, name, {**tags, **scored})
    decision = judge(
        tracker.client,
        name,
        version,
        score_champion=lambda other: score_champion(fetch(tracker.uri, f"models:/{name}/{other}")),
    )
    settle(tracker.client, name, version, decision)
    return Registered(name=name, version=version, champion=decision.champion, reason=decision.reason)


def requirements() -> list[str]:
    """What a plain environment needs to serve a model, in the versions of this one."""
    found = [f"{package}=={installed(package).split('+')[0]}" for package in REQUIREMENTS]
    try:
        return [*found, f"decord=={installed('decord')}; platform_machine == 'x86_64'"]
    except PackageNotFoundError:
        return found  # not made for this machine; PyAV reads everything there


def log_version(
    tracker: Tracker, run_id: str, bundle: Bundle, folder: str | Path, name: str, tags: dict[str, str]
) -> str:
    """Log the folder as a model of the run, register it with these tags as the `candidate`; returns the version."""
    root = Path(__file__).resolve().parent.parent
    card = model_card(bundle, tags)
    (Path(folder) / CARD).write_text(card)
    with at(tracker.uri):
        import mlflow

        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(root / "tasks" / "served_model.py"),
                artifacts={"bundle": str(folder)},
                code_paths=[str(root / room) for room in ("pthnet", "storage", "tasks")],
                signature=_signature(bundle),
                input_example=input_example(bundle),
                pip_requirements=requirements(),
            )
        version = str(mlflow.register_model(logged.model_uri, name, tags=tags).version)
    tracker.client.update_model_version(name, version, card)
    tracker.client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def fetch(tracking_uri: str, model: str) -> Bundle:
    """The bundle inside a registered model ("models:/name@champion", "models:/name/3") or a local folder.

    Raises
    ------
    ModelError
        When there is no such model, or it is not one of ours.
    """
    if not model.startswith("models:/"):
        return load_bundle(model)
    database = tracking_uri.removeprefix("sqlite:///")
    if database != tracking_uri and not Path(database).exists():
        raise ModelError(f"no model {model}: there is no {database}; name the tracking server with --tracking-uri")
    with at(tracking_uri):
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            # Not the code beside it, some hundred files: it is this code, and a server sends them one by one.
            folder = Path(mlflow.artifacts.download_artifacts(f"{model}/artifacts"))
        except MlflowException as error:
            where = tracking_uri.split("@")[-1]
            raise ModelError(f"no model {model} at {where}: {str(error).splitlines()[0]}") from error
    found = sorted(folder.glob("*/model.json"))
    if not found:
        raise ModelError(f"{model} was not registered by `pthnet train`: it holds no model.json")
    return load_bundle(found[0].parent)
