"""Bring published PTH-Net weights into the registry, fused.

pthnet import-model FERV39k-ori-model_best.pth FERV39k-ori-rv-model_best.pth --name pthnet-ferv39k --benchmark FERV39k
"""

import json as json_module
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tasks.bundle import Bundle
    from tasks.registered import Registered


def import_model(
    forward: Path,
    reverse: Path,
    /,
    *,
    name: str,
    benchmark: str | None = None,
    classes: str | None = None,
    mu: float = 0.7,
    features: str | None = None,
    extractor: str | None = None,
    backbone: str = "giant",
    weights: str | None = None,
    random_weights: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    licence: str = "that of the published weights",
    tracking_uri: str | None = None,
    out: str = "runs",
    experiment: str = "pthnet",
    json: bool = False,
) -> int:
    """Fuse a published forward and reverse checkpoint and register them. Nothing inside the files is run.

    Parameters
    ----------
    forward
        The published .pth file (or .safetensors) of the forward direction.
    reverse
        That of the reverse direction.
    name
        Of the registered model.
    benchmark
        Whose class names the model has, as FERV39k or DFEW.
    classes
        Class names in the order of the labels, comma-separated, instead of a benchmark.
    mu
        Weight of the forward logits.
    features
        A feature table whose features the model shall read.
    extractor
        Which of them, when the table holds several.
    backbone
        Instead of a table: the backbone that the model shall read; giant in the published work.
    weights
        Its checkpoint.
    random_weights
        Or one drawn from a seed, to try things out.
    precision
        Of that backbone: auto is what this machine runs best.
    licence
        What the weights may be used for, kept as a tag.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else the SQLite file in `out`.
    out
        Where that file lies.
    experiment
        MLflow experiment of the import's run.
    json
        Print one JSON object.
    """
    from tasks.tracking import tracking_uri as default_uri

    bundle = fused_bundle(
        forward,
        reverse,
        benchmark=benchmark,
        classes=classes,
        mu=mu,
        features=features,
        extractor=extractor,
        backbone=backbone,
        weights=weights,
        random_weights=random_weights,
        precision=precision,
    )
    done = register_bundle(bundle, name, uri=default_uri(tracking_uri, out), experiment=experiment, licence=licence)
    if json:
        print(json_module.dumps({**asdict(done), "uri": done.uri, "extractor": bundle.extractor_id}))
        return 0
    print(f"{done.uri}: {done.reason}")
    if not bundle.extractor:
        print(
            "it does not know its backbone yet, so it reads features only; import it with --weights to predict videos"
        )
    return 0


def fused_bundle(
    forward: Path,
    reverse: Path,
    *,
    benchmark: str | None,
    classes: str | None,
    mu: float,
    features: str | None = None,
    extractor: str | None = None,
    backbone: str = "giant",
    weights: str | None = None,
    random_weights: int | None = None,
    precision: str = "auto",
) -> "Bundle":
    """The two checkpoints as one model; parameters as in `import_model`.

    Raises
    ------
    ModelError
        For files that are no PTH-Net, directions that do not fit each other, the classes or the extractor.
    """
    from pthnet.errors import ModelError
    from pthnet.published import load_pthnet
    from storage.files import absolute
    from tasks.bundle import Bundle

    networks = {}
    for direction, path in (("forward", forward), ("reverse", reverse)):
        if not path.is_file():
            raise ModelError(f"{path} is not there; name the {direction} checkpoint")
        networks[direction] = load_pthnet(path)
    names = _class_names(benchmark, classes)
    for direction, network in networks.items():
        if network.config.num_classes != len(names):
            raise ModelError(
                f"the {direction} network knows {network.config.num_classes} classes, {benchmark or 'the list'} has "
                f"{len(names)}: {', '.join(names)}"
            )
    sizes = {network.config.in_dim for network in networks.values()}
    if len(sizes) > 1:
        raise ModelError(f"forward and reverse read features of different sizes: {sorted(sizes)}")
    if not 0 <= mu <= 1:
        raise ModelError(f"mu is a weight in [0, 1], not {mu}; the published one is 0.7")
    spec, extractor_id = _extractor(features, extractor, backbone, weights, random_weights, precision)
    if spec and spec["config"]["dim"] not in sizes:
        raise ModelError(
            f"the networks read {sizes.pop()} numbers a window, {extractor_id} makes {spec['config']['dim']}; "
            "name the backbone they were trained on"
        )
    return Bundle(
        networks=networks,
        mu=mu,
        classes=names,
        extractor=spec,
        extractor_id=extractor_id,
        backbone_uri=absolute(weights) if weights else "",
        facts={"benchmark": benchmark or "own", "source": "published weights", "files": [forward.name, reverse.name]},
    )


def register_bundle(bundle: "Bundle", name: str, *, uri: str, experiment: str, licence: str) -> "Registered":
    """Register a model that was not trained here. It has no scores: only as the first version it becomes champion."""
    from tasks.bundle import save_bundle
    from tasks.champion import judge, settle
    from tasks.model_source import digest_of
    from tasks.registered import Registered, log_version
    from tasks.tracking import Tracker

    database = uri.removeprefix("sqlite:///")  # then MLflow would put artifacts into the working directory
    tracker = Tracker(uri, experiment, None if database == uri else str(Path(database).parent / "mlartifacts"))
    digest = digest_of(bundle)
    tags = {
        "source": "published weights",
        "benchmark": str(bundle.facts["benchmark"]),
        "extractor": bundle.extractor_id,
        "licence": licence,
        "digest": digest,
    }
    run = tracker.begin(f"import {name}", f"import-{name}-{digest[:12]}", tags)
    tracker.params(run, {"mu": bundle.mu, "files": ", ".join(bundle.facts["files"]), "extractor": bundle.extractor_id})
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        version = log_version(tracker, run, bundle, save_bundle(bundle, folder), name, tags)
    decision = judge(tracker.client, name, version)
    settle(tracker.client, name, version, decision)
    tracker.end(run)
    return Registered(name=name, version=version, champion=decision.champion, reason=decision.reason)


def _class_names(benchmark: str | None, classes: str | None) -> tuple[str, ...]:
    from pthnet.benchmarks import find_benchmark, load_benchmark_yaml
    from pthnet.errors import ModelError

    if (benchmark is None) == (classes is None):
        raise ModelError("name the classes: either --benchmark NAME or --classes Happy,Sad,... in the labels' order")
    if benchmark is not None:
        is_file = benchmark.endswith((".yaml", ".yml"))
        return (load_benchmark_yaml(benchmark) if is_file else find_benchmark(benchmark)).classes
    return tuple(part.strip() for part in (classes or "").split(",") if part.strip())


def _extractor(
    features: str | None,
    extractor: str | None,
    backbone: str,
    weights: str | None,
    random_weights: int | None,
    precision: str,
) -> tuple[dict[str, Any], str]:
    """Specification and id of the extractor: a table's, the one of the weights named, or unknown."""
    from pthnet.errors import ModelError

    if features is not None:
        from storage.features import FeatureTable
        from tasks.feature_set import choose_extractor

        recorded = FeatureTable(features).extractors()
        chosen = choose_extractor(list(recorded), extractor, features)
        return json_module.loads(recorded[chosen]), chosen
    if extractor is not None:
        raise ModelError("--extractor names one of a table: give --features too")
    if weights is None and random_weights is None:
        return {}, ""
    from tasks.resolve import resolve_extractor

    found = resolve_extractor(backbone, weights=weights, random_weights=random_weights, precision=precision)
    return json_module.loads(found.to_json()), found.id
