"""Where a model named on the command line comes from, and the backbone whose features it reads."""

import hashlib
import json
import os
from pathlib import Path

from pthnet.errors import ModelError
from pthnet.extractor import Extractor, digest_state_dict
from tasks.bundle import BACKBONE, Bundle, load_bundle
from tasks.champion import holder
from tasks.registered import fetch

DEFAULT_STORE = Path("runs/mlflow.db")  # where `pthnet train` tracks unless it is told otherwise


def registry_uri(given: str | None) -> str:
    """The MLflow to ask: the address given, MLFLOW_TRACKING_URI, else what `pthnet train` left in ./runs.

    Raises
    ------
    ModelError
        When none is named and ./runs holds no MLflow.
    """
    if named := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return named
    if not DEFAULT_STORE.exists():
        raise ModelError(
            f"no MLflow is named and there is no {DEFAULT_STORE} here; give --tracking-uri or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{DEFAULT_STORE.resolve()}"


def load_model(model: str, tracking_uri: str | None = None) -> Bundle:
    """A model by its registry name (models:/name@champion, models:/name/3) or by its folder.

    Raises
    ------
    ModelError
        When there is no such model.
    """
    if model.startswith("models:/"):
        uri = registry_uri(tracking_uri)
        version = _version(uri, model)
        bundle = fetch(uri, f"models:/{_name(model)}/{version}" if version else model)
        bundle.facts["version"] = version
        return bundle
    if not Path(model).is_dir():
        raise ModelError(f"{model} is neither models:/NAME@ALIAS, models:/NAME/VERSION nor a folder with a model")
    return load_bundle(model)


def _name(model: str) -> str:
    return model.removeprefix("models:/").partition("@")[0].partition("/")[0]


def _version(uri: str, model: str) -> str:
    """The version behind an alias at this moment, or the one named; "" where only MLflow can tell (latest)."""
    if "@" not in model:
        named = model.rpartition("/")[2]
        return named if named.isdigit() else ""
    from tasks.tracking import quiet

    quiet()
    from mlflow import MlflowClient

    found = holder(MlflowClient(tracking_uri=uri, registry_uri=uri), _name(model), model.rpartition("@")[2])
    return str(found.version) if found else ""


def extractor_of(bundle: Bundle) -> Extractor:
    """The extractor whose features the model reads.

    Raises
    ------
    ModelError
        When the model does not say, as with features that came from elsewhere.
    """
    if not bundle.extractor:
        raise ModelError(
            f"the model reads features of {bundle.extractor_id or 'an unnamed extractor'} whose settings were not "
            "recorded, so videos cannot be extracted for it; give a --features table that holds them"
        )
    return Extractor.from_json(json.dumps(bundle.extractor))


def backbone_weights(bundle: Bundle, extractor: Extractor, given: str | None = None) -> str | None:
    """Where the backbone's weights lie: the file given, PTHNET_WEIGHTS, the model's copy, the place it remembers.

    None: they are drawn from the extractor's seed.

    Raises
    ------
    ModelError
        When nothing says where they are.
    """
    if named := given or os.environ.get("PTHNET_WEIGHTS"):
        return named
    own = bundle.folder / BACKBONE if bundle.folder else None
    if own is not None and own.exists():
        return str(own)
    if extractor.seed is not None or extractor.backbone == "null":
        return None
    remembered = bundle.backbone_uri
    if remembered and ("://" in remembered or Path(remembered).exists()):
        return remembered
    gone = f"they were at {remembered}, which is not there any more" if remembered else "the model does not say where"
    raise ModelError(
        f"the model needs the weights of {extractor.backbone} (sha256 {extractor.weights[:8]}...) and {gone}; "
        "give --weights FILE or set PTHNET_WEIGHTS"
    )


def digest_of(bundle: Bundle, *settings: object) -> str:
    """Names a model together with settings of its use: what was made with another one is made again."""
    told = [bundle.mu, bundle.level, bundle.classes, bundle.extractor_id, *settings]
    told += [(direction, digest_state_dict(net.state_dict())) for direction, net in sorted(bundle.networks.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
