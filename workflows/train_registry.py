"""Figures of a training, and its models in the registry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tasks.bundle import Bundle
    from tasks.checkpoints import TrainState
    from tasks.feature_set import FeatureSet
    from tasks.report import FoldResult
    from tasks.tracking import Tracker
    from workflows.train_data import TrainData
    from workflows.train_request import TrainRequest


def figures_of(
    states: Mapping[str, "TrainState"],
    results: Sequence["FoldResult"],
    bundles: Mapping[str, tuple["Bundle", Path]],
    features: Mapping[str, "FeatureSet"],
    data: "TrainData",
) -> dict[str, Any]:
    import numpy as np
    import torch

    from tasks import figures
    from tasks.evaluate import logits_of
    from tasks.sampling import DeviceTable

    target = np.concatenate([result.target for result in results])
    logits = np.concatenate([result.logits["fused"] for result in results])
    shown = [system for system in ("forward", "reverse", "fused") if system in results[0].logits]
    predicted = {system: np.concatenate([result.logits[system].argmax(1) for result in results]) for system in shown}
    made = {
        "learning_curves": figures.learning_curves(
            {fit.replace("-", " "): state.history for fit, state in states.items()}
        ),
        "confusion": figures.confusion_matrix(target, predicted["fused"], data.benchmark.classes),
        "recall": figures.class_recalls(
            {system: (target, answers) for system, answers in predicted.items()}, data.benchmark.classes
        ),
        "reliability": figures.reliability_diagram(target, logits),
    }
    bundle, rows = bundles[results[0].fold][0], data.census.splits[0].test
    if len(rows) > 4:
        rows = (
            rows
            if len(rows) <= figures.MAP_CLIPS
            else np.sort(np.random.default_rng(0).choice(rows, figures.MAP_CLIPS, replace=False))
        )
        pooled = []
        for direction, network in bundle.networks.items():
            table = DeviceTable(features[direction], torch.device("cpu"))
            pooled.append(logits_of(network, table, rows, level=bundle.level, with_features=True)[1])
        joined = np.concatenate([part.numpy() for part in pooled if part is not None], axis=1)
        made["embedding"] = figures.embedding_map(joined, data.census.labels[rows], data.benchmark.classes)
    return made


def register_folds(
    request: "TrainRequest",
    data: "TrainData",
    results: Sequence["FoldResult"],
    bundles: Mapping[str, tuple["Bundle", Path]],
    features: Mapping[str, "FeatureSet"],
    tracker: "Tracker",
    parent: str,
    name: str,
) -> list[dict[str, Any]]:
    from tasks.evaluate import data_digest
    from tasks.registered import register

    model = request.model_name or f"pthnet-{data.benchmark.name.lower()}"
    if before := _registered_before(tracker, parent, model):
        return before
    wanted = {"none": [], "first": list(results[:1]), "all": list(results)}[request.register]
    made = []
    for result in wanted:
        bundle, path = bundles[result.fold]
        rows = data.census.splits[[each.fold for each in results].index(result.fold)].test
        fold_scores = bundle.facts["test"]
        tags = {"run": name, "fold": result.fold, "benchmark": data.benchmark.name, "extractor": data.extractor}
        found = register(
            tracker,
            parent,
            bundle,
            path,
            model,
            uar=fold_scores["uar"],
            war=fold_scores["war"],
            data=data_digest(result.clip_ids, result.target),
            tags={**tags, "table_version": str(data.version)},
            score_champion=lambda other, rows=rows: _score_other(other, features, rows, data),  # type: ignore[misc]
        )
        made.append({**asdict(found), "uri": found.uri})
    return made


def _registered_before(tracker: "Tracker", parent: str, model: str) -> list[dict[str, Any]]:
    """What an earlier, finished command of this run registered under the name; a model is not registered twice."""
    from tasks.registered import CHAMPION, Registered

    made = []
    for version in tracker.client.search_model_versions(f"name = '{model}'"):
        if version.run_id == parent and "decision" in version.tags:
            champion = CHAMPION in tracker.client.get_model_version(model, version.version).aliases
            reason = version.tags["decision"]
            found = Registered(name=model, version=str(version.version), champion=champion, reason=reason)
            made.append({**asdict(found), "uri": found.uri})
    return sorted(made, key=lambda found: int(found["version"]))


def _score_other(
    other: "Bundle", features: Mapping[str, "FeatureSet"], rows: "np.ndarray", data: "TrainData"
) -> tuple[float, float] | None:
    """(uar, war) of another model on the same clips; None when it reads other features, directions or classes."""
    from pthnet.metrics import scores

    same = other.extractor_id == data.extractor and other.classes == data.benchmark.classes
    if not same or not set(other.networks) <= set(features):
        return None
    answers = other.logits(dict(features), rows)["fused"].argmax(1)
    found = scores(data.census.labels[rows], answers, data.benchmark.num_classes)
    return found.uar, found.war
