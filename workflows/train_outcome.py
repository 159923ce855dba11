"""From trained states to an outcome: fusion, scores, results.json, figures, MLflow, registry."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from tasks.bundle import Bundle
    from tasks.checkpoints import TrainState
    from tasks.feature_set import FeatureSet
    from tasks.report import FoldResult
    from tasks.tracking import Tracker
    from tasks.train_settings import TrainSettings
    from workflows.train import TrainRequest, TrainResult
    from workflows.train_data import TrainData


def conclude(
    request: "TrainRequest",
    data: "TrainData",
    settings: "TrainSettings",
    states: Mapping[str, "TrainState"],
    refs: Mapping[str, Any],
    *,
    name: str,
    folder: str,
    tracker: "Tracker",
    began: float,
    console: "Console",
) -> "TrainResult":
    """Everything after the last epoch; safe to repeat."""
    import ray

    from tasks.report import published_rows, summarize

    results = fuse_folds(request, data, states)
    summary = summarize(results, data.benchmark.classes)
    published = published_rows(data.benchmark)
    notes = [*data.notes, *_protocol(request, results, bool(published))]
    features = {direction: ray.get(ref) for direction, ref in refs.items()}
    with _local(folder) as place:
        bundles = make_bundles(request, data, settings, states, results, summary, name, place)
        return _deliver(
            request, data, settings, states, results, bundles, features, tracker, console,
            name=name, folder=folder, began=began, summary=summary, published=published, notes=notes,
        )  # fmt: skip


def _deliver(
    request: "TrainRequest",
    data: "TrainData",
    settings: "TrainSettings",
    states: Mapping[str, "TrainState"],
    results: Sequence["FoldResult"],
    bundles: Mapping[str, tuple["Bundle", Path]],
    features: Mapping[str, "FeatureSet"],
    tracker: "Tracker",
    console: "Console",
    *,
    name: str,
    folder: str,
    began: float,
    summary: dict[str, Any],
    published: dict[str, Any],
    notes: list[str],
) -> "TrainResult":
    """Log, register, and write the results beside the checkpoints."""
    from workflows.train import TrainResult
    from workflows.train_registry import figures_of, register_folds

    parent, children = _begin_runs(tracker, name, folder, request, data, settings, states)
    with console.status("logging and registering") if console.is_terminal else _Nothing():
        for fit, state in states.items():
            tracker.params(
                children[fit],
                {
                    "direction": fit.rsplit("-", 1)[-1],
                    "fold": fit.split("-")[1],
                    "selected_epoch": state.selected_epoch,
                },
            )
            tracker.history(children[fit], state.history)
            tracker.end(children[fit])
        figures = figures_of(states, results, bundles, features, data) if request.figures else {}
        tracker.figures(parent, figures)
        tracker.metrics(parent, _final_metrics(summary))
        registered = register_folds(request, data, results, bundles, features, tracker, parent, name)

    outcome = TrainResult(
        run_name=name,
        folder=folder,
        benchmark=data.benchmark.name,
        extractor=data.extractor,
        table_version=data.version,
        summary=summary,
        published=published,
        notes=notes,
        registered=registered,
        tracking_uri=_public(tracker.uri),
        mlflow_run=parent,
        models={fold: _upload(path, folder) for fold, (_, path) in bundles.items()},
        seconds=time.perf_counter() - began,
    )
    _write(folder, outcome, settings, results, figures)
    tracker.client.log_dict(parent, asdict(outcome), "results.json")
    tracker.end(parent)
    return outcome


def fuse_folds(request: "TrainRequest", data: "TrainData", states: Mapping[str, "TrainState"]) -> list["FoldResult"]:
    """Forward, reverse and fused logits of every fold, and the alternatives that were not chosen."""
    from tasks.evaluate import choose_mu, fuse
    from tasks.report import FoldResult

    classes, results = data.benchmark.num_classes, []
    for split in data.census.splits:
        state = {direction: states[f"fold-{split.fold}-{direction}"] for direction in request.directions}
        test: dict[str, np.ndarray] = {direction: kept.logits["test"].numpy() for direction, kept in state.items()}
        both = len(test) == 2
        fixed = 0.7 if request.mu == "validation" else float(request.mu)
        mu, logits = fixed, dict(test)
        chosen = None
        if both and len(split.validation):
            held = {direction: kept.logits["validation"].numpy() for direction, kept in state.items()}
            chosen = choose_mu(held["forward"], held["reverse"], data.census.labels[split.validation], classes)
        if request.mu == "validation" and chosen is not None:
            mu = chosen
        logits["fused"] = fuse(test.get("forward"), test.get("reverse"), mu)
        if chosen is not None:
            other, label = (
                (fixed, f"fused, mu {fixed:.2f}")
                if request.mu == "validation"
                else (chosen, "fused, mu from validation")
            )
            logits[label] = fuse(test["forward"], test["reverse"], other)
        last = {direction: kept.logits["last"].numpy() for direction, kept in state.items() if "last" in kept.logits}
        if len(last) == len(test):
            logits["fused, last epoch"] = fuse(last.get("forward"), last.get("reverse"), mu)
        results.append(
            FoldResult(
                fold=split.fold,
                clip_ids=data.census.clip_ids[split.test],
                target=data.census.labels[split.test],
                train_labels=data.census.labels[split.train],
                logits=logits,
                mu=mu,
                epochs={direction: kept.selected_epoch for direction, kept in state.items()},
            )
        )
    return results


def make_bundles(
    request: "TrainRequest",
    data: "TrainData",
    settings: "TrainSettings",
    states: Mapping[str, "TrainState"],
    results: Sequence["FoldResult"],
    summary: Mapping[str, Any],
    name: str,
    folder: Path,
) -> dict[str, tuple["Bundle", Path]]:
    """The fused model of every fold as a folder, `model-fold-<k>`."""
    from pthnet.pth_net import PTHNet
    from tasks.bundle import Bundle, save_bundle

    made = {}
    for result in results:
        networks: dict[str, PTHNet] = {}
        for direction in request.directions:
            network = PTHNet(settings.model)
            network.load_state_dict(states[f"fold-{result.fold}-{direction}"].weights)
            networks[direction] = network.eval()
        bundle = Bundle(
            networks=networks,
            mu=result.mu,
            classes=data.benchmark.classes,
            extractor=data.spec,
            extractor_id=data.extractor,
            level=settings.level,
            backbone_uri=data.weights,
            facts={
                "run": name,
                "benchmark": data.benchmark.name,
                "fold": result.fold,
                "data": data.facts,
                "selection": request.selection,
                "epochs": result.epochs,
                "test": summary["systems"]["fused"]["folds"][result.fold],
            },
        )
        made[result.fold] = (bundle, save_bundle(bundle, folder / f"model-fold-{result.fold}"))
    return made


def _protocol(request: "TrainRequest", results: Sequence["FoldResult"], published: bool) -> list[str]:
    """How epoch and mu were chosen, in words a reader of the table needs."""
    epoch = {
        "last": "weights of the last epoch",
        "validation": f"epoch chosen by {request.select_by.upper()} on held-out training clips",
        "best-on-test": f"epoch chosen by {request.select_by.upper()} ON THE TEST CLIPS, as in the papers: optimistic",
    }[request.selection]
    lines = [f"protocol: {epoch}"]
    if len(request.directions) == 2:
        values = ", ".join(f"{result.mu:.2f}" for result in results)
        lines[0] += f"; mu {values} " + (
            "chosen on held-out training clips" if request.mu == "validation" else "fixed beforehand"
        )
    if published:
        lines.append("* published rows: the paper's numbers, whose epoch was chosen on the test clips")
    return lines


def _begin_runs(
    tracker: "Tracker",
    name: str,
    folder: str,
    request: "TrainRequest",
    data: "TrainData",
    settings: "TrainSettings",
    states: Mapping[str, "TrainState"],
) -> tuple[str, dict[str, str]]:
    tags = {
        "pthnet.benchmark": data.benchmark.name,
        "pthnet.extractor": data.extractor,
        "pthnet.features": data.facts["features"],
        "pthnet.table_version": str(data.version),
        "pthnet.lists": json.dumps(data.facts["lists"]),
    }
    parent = tracker.begin(name, folder, tags)
    flat = {key: value for key, value in settings.to_dict().items() if key != "model"}
    flat |= {f"model.{key}": value for key, value in settings.to_dict()["model"].items()}
    chosen = {
        "mu": request.mu,
        "validation": data.facts["validation"],
        "clips": data.facts["clips"],
        "folds": len(data.folds),
    }
    data_params = {"extractor": data.extractor, "features": data.facts["features"], "table_version": data.version}
    tracker.params(parent, {**flat, **chosen, **data_params})
    children = {fit: tracker.begin(fit, f"{folder}/{fit}", tags, parent) for fit in states}
    return parent, children


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for system, scored in summary["systems"].items():
        plain = system.replace(", ", "_").replace(" ", "_")
        for metric, value in scored["pooled"].items():
            found[f"{plain}_{metric}"] = value
        if len(scored["folds"]) > 1:
            for metric in ("war", "uar"):
                found[f"{plain}_{metric}_mean"], found[f"{plain}_{metric}_std"] = (
                    scored["mean"][metric],
                    scored["std"][metric],
                )
    return found


def _write(
    folder: str,
    outcome: "TrainResult",
    settings: "TrainSettings",
    results: Sequence["FoldResult"],
    figures: Mapping[str, Any],
) -> None:
    """results.json, predictions.csv and figures/ beside the checkpoints."""
    import io

    from storage.files import join, write_atomic

    write_atomic(
        join(folder, "results.json"), json.dumps({**asdict(outcome), "settings": settings.to_dict()}, indent=2).encode()
    )
    lines = ["fold,clip_id,label,predicted"]
    for result in results:
        answers = result.logits["fused"].argmax(1)
        lines += [
            f'{result.fold},"{clip}",{label},{answer}'
            for clip, label, answer in zip(result.clip_ids, result.target, answers, strict=True)
        ]
    write_atomic(join(folder, "predictions.csv"), ("\n".join(lines) + "\n").encode())
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_atomic(join(folder, "figures", f"{name}.png"), picture.getvalue())


def _local(folder: str) -> AbstractContextManager[Path]:
    """Where models are written before MLflow stores them: the run's folder, or a temporary one when that is remote."""
    return _here(Path(folder)) if "://" not in folder else _temporary()


@contextmanager
def _here(folder: Path) -> Iterator[Path]:
    yield folder


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _upload(model: Path, folder: str) -> str:
    """Where a model's folder lies for good."""
    from storage.files import join, write_atomic

    if "://" not in folder:
        return str(model)
    for file in model.iterdir():
        write_atomic(join(folder, model.name, file.name), file.read_bytes())
    return join(folder, model.name)


def _public(uri: str) -> str:
    """A tracking address without its user and password."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.split('@')[-1]}"


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
