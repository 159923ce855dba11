"""Leave one subject out: `pthnet loso --flow DIR --csv combined.csv`, or with PTH-Net on extracted features.

pthnet synth-micro micro/
pthnet loso --flow micro/flow --csv micro/combined.csv --dim 56 --epochs 20
pthnet loso --model pthnet --features features/ --annotations casme2.csv
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.loso_results import LosoStudy
    from tasks.loso_train import FoldOutcome


def loso(
    *,
    model: Literal["htnet", "pthnet"] = "htnet",
    flow: Path | None = None,
    csv: Path | None = None,
    landmarks: Path | None = None,
    axes: Literal["published", "corrected"] = "published",
    whole: bool = False,
    features: str | None = None,
    annotations: str | None = None,
    lists: Path | None = None,
    extractor: str | None = None,
    mu: float = 0.7,
    out: Path = Path("loso"),
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    dim: int | None = None,
    attention: Literal["block", "block-full", "grid"] = "block",
    selection: Literal["last", "best-on-test"] = "last",
    seed: int = 0,
    tf32: bool = False,
    folds_at_once: int | None = None,
    cpus_per_task: int = 1,
    gpus_per_task: float | None = None,
    address: str | None = None,
    keep_weights: bool = False,
    fresh: bool = False,
    track: bool = True,
    tracking_uri: str | None = None,
    json: bool = False,
) -> None:
    """Train one model for every subject on all the others, test it on that subject, and score all predictions together.

    The same command goes on after a kill: finished subjects are not trained again.

    Parameters
    ----------
    model
        htnet: flow images, three classes (negative, positive, surprise). pthnet: extracted features, CASME II's five.
    flow
        HTNet: folder of flow images "<sub>_<file> .png"; without --csv a folder of <sub>/u_train|u_test/<label>/*.png.
    csv
        HTNet: the combined list with the columns dataset, sub, filename_o, label.
    landmarks
        HTNet: CSV sub,filename_o,x0,y0,...,x4,y4 in 28 x 28 pixels; without it the published fallback for every face.
    axes
        Crop the four parts as published (x is the row) or corrected.
    whole
        Show the network the whole flow image instead of the four parts (not the published model).
    features
        PTH-Net: feature table of `pthnet extract`.
    annotations
        PTH-Net: one list of clips and labels; the clip's name tells the subject ("sub01/EP02_01f").
    lists
        PTH-Net: folder of set_1_train.txt, set_1_test.txt, ... one pair a subject, instead of --annotations.
    extractor
        PTH-Net: which features, when the table holds several.
    mu
        PTH-Net: weight of the forward network's logits.
    out
        Receives folds/, results.json, subjects.csv, predictions.csv, confusion.png and mlflow.db.
    epochs
        Published: 800 for HTNet, 20 for PTH-Net.
    batch_size
        Published: 256 for HTNet, 32 for PTH-Net.
    lr
        Learning rate; published: 5e-5 for HTNet, 0.005 for PTH-Net.
    dim
        Channels; published: 256 for HTNet, 512 for PTH-Net.
    attention
        HTNet: block as published; block-full the same with q and k spelled out; grid is another model that attends over
        the whole grid of patches.
    selection
        last: the last epoch predicts. best-on-test: each subject's best epoch on its own test samples, as the published
        scores do it.
    seed
        Initial weights and batches; the same seed gives the same scores however folds are grouped.
    tf32
        HTNet: matrix products and convolutions with TF32's 10-bit mantissa on GPUs that have it, several times faster
        than the float32 of the default. Ignored on a CPU.
    folds_at_once
        Folds trained as one stack in a task; by default one on a CPU, on a GPU what is estimated to fit.
    cpus_per_task
        Cores that a task holds.
    gpus_per_task
        GPUs that a task holds, where there are any: by default one for HTNet, whose stacks fill it, and a quarter for
        PTH-Net, so that four tasks share one.
    address
        Ray cluster to join.
    keep_weights
        Write every fold's weights to models/, published names.
    fresh
        Drop what an earlier run left in --out.
    track
        Log to MLflow: a run with a nested run for every subject.
    tracking_uri
        Where; by default <out>/mlflow.db.
    json
        Print the results as JSON on standard output.
    """
    import json as encode
    from functools import partial

    from rich.console import Console

    from cluster.connect import connect
    from tasks.loso_report import PUBLISHED_NOTE, table_rows, write_report
    from tasks.loso_results import open_run
    from workflows.loso_fanout import fan_out, plan_fanout

    console = Console(stderr=json)
    if model == "htnet":
        job = _htnet(flow, csv, landmarks, axes, whole, epochs, batch_size, lr, dim, attention, selection, seed, tf32)
    else:
        job = _pthnet(features, annotations, lists, extractor, mu, epochs, batch_size, lr, dim, selection, seed)
    study = job["study"]
    finished = open_run(out, study, fresh=fresh)
    missing = [fold for fold in study.folds if fold.number not in finished]
    if missing:
        resources = connect(address)
        plan = plan_fanout(
            len(missing),
            resources,
            at_once=folds_at_once,
            cpus=cpus_per_task,
            gpus=gpus_per_task,
            share=1.0 if model == "htnet" else 0.25,
            fits=partial(_fits, job["settings"]) if model == "htnet" else lambda gpus: 1,
        )
        work = fan_out(
            study,
            missing,
            job["train"],
            job["data"],
            job["settings"],
            plan,
            out,
            console,
            keep_weights=keep_weights,
        )
        finished |= {outcome.number: outcome for outcome in work}
    outcomes = [finished[number] for number in sorted(finished)]
    summary = write_report(out, study, outcomes)
    if track:
        _track(out, study, outcomes, summary, tracking_uri)
    if json:
        print(encode.dumps(summary))
        return
    _print(console, summary, table_rows(summary), PUBLISHED_NOTE if study.published else "")
    console.print(f"report in {out}", highlight=False)


def _htnet(
    flow: Path | None,
    combined: Path | None,
    landmarks: Path | None,
    axes: Literal["published", "corrected"],
    whole: bool,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    dim: int | None,
    attention: Literal["block", "block-full", "grid"],
    selection: Literal["last", "best-on-test"],
    seed: int,
    tf32: bool,
) -> dict[str, Any]:
    """Read the flow images and settle what is trained."""
    import hashlib
    from dataclasses import asdict

    from pthnet.htnet import HTNetConfig
    from pthnet.micro_expressions import CLASSES, HTNET_PUBLISHED
    from storage.errors import StorageError
    from tasks import loso_data
    from tasks.loso_results import LosoStudy
    from tasks.loso_train import LosoSettings, train_folds

    if flow is None:
        raise StorageError("HTNet reads flow images: name their folder with --flow; `pthnet flow` makes them")
    samples = loso_data.read_published(flow, combined) if combined else loso_data.read_subject_folders(flow)
    folds = loso_data.leave_one_out(samples.subjects)
    loso_data.refuse_leakage(folds, samples.subjects, samples)
    points = loso_data.read_landmarks(landmarks, samples.names.tolist()) if landmarks else None
    images = loso_data.network_input(samples.images, points, axes, crop=not whole)
    settings = LosoSettings(
        config=HTNetConfig(dim=dim or 256, attention=attention),
        epochs=epochs or 800,
        batch_size=batch_size or 256,
        learning_rate=lr or 5e-5,
        seed=seed,
        selection=selection,
        tf32=tf32,
    )
    identity = {
        "model": "htnet",
        **asdict(settings),
        "axes": axes,
        "whole": whole,
        "data": samples.digest(),
        "input": hashlib.sha256(images.tobytes()).hexdigest()[:16],
    }
    study = LosoStudy(
        model="HTNet" if attention != "grid" else "HTNet with whole-grid attention (not the published model)",
        classes=CLASSES,
        names=samples.names,
        datasets=samples.datasets,
        subjects=samples.subjects,
        labels=samples.labels,
        folds=folds,
        settings=identity,
        selection=selection,
        epochs=settings.epochs,
        published=HTNET_PUBLISHED,
    )
    return {"study": study, "train": train_folds, "data": (images, samples.labels), "settings": settings}


def _pthnet(
    features: str | None,
    annotations: str | None,
    lists: Path | None,
    extractor: str | None,
    mu: float,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    dim: int | None,
    selection: Literal["last", "best-on-test"],
    seed: int,
) -> dict[str, Any]:
    """Read both directions' features and settle what is trained."""
    from storage.errors import StorageError
    from tasks.loso_features import casme2_study, train_pthnet_folds

    if features is None or (annotations is None) == (lists is None):
        raise StorageError("PTH-Net reads extracted features: name --features, and either --annotations or --lists")
    study, data, settings = casme2_study(
        features,
        annotations=annotations,
        lists=lists,
        extractor=extractor,
        mu=mu,
        epochs=epochs,
        batch=batch_size,
        lr=lr,
        dim=dim,
        selection=selection,
        seed=seed,
    )
    return {"study": study, "train": train_pthnet_folds, "data": data, "settings": settings}


def _fits(settings: Any, gpus: float) -> int:
    """How many folds one task takes, asked on a GPU of the cluster where tasks hold (a part of) one."""
    import torch

    from tasks.loso_train import folds_at_once

    if not settings.stacks:
        return 1
    if not gpus:
        return folds_at_once(settings.config, torch.device("cpu"))
    import ray

    probe: Any = ray.remote(num_cpus=0, num_gpus=min(gpus, 1.0))(folds_at_once)
    whole: int = ray.get(probe.remote(settings.config, torch.device("cuda"), settings.batch_size))
    return max(1, int(whole * min(gpus, 1.0)))


def _track(
    out: Path, study: "LosoStudy", outcomes: "list[FoldOutcome]", summary: dict[str, Any], uri: str | None
) -> None:
    """One MLflow run with the pooled scores and a nested run for every subject."""
    import hashlib
    import json

    from tasks.loso_report import confusion_figure
    from tasks.loso_results import identity_of
    from tasks.tracking import Tracker, tracking_uri

    address = tracking_uri(uri, str(out))
    tracker = Tracker(address, "loso", None if uri else f"{out.resolve()}/mlartifacts")
    identity = json.dumps([str(out.resolve()), identity_of(study.settings)], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    tags = {"selection": summary["selection_note"]}
    parent = tracker.begin(f"loso {study.model}", key, tags)
    tracker.params(parent, study.settings)
    for outcome, row in zip(outcomes, summary["by_subject"], strict=True):
        run = tracker.begin(outcome.subject, f"{key}/{outcome.number}", tags, parent)
        every = -(-len(outcome.losses) // 100)
        kept = {*range(0, len(outcome.losses), every), len(outcome.losses) - 1}
        tracker.history(run, [{"epoch": e + 1, "loss": float(outcome.losses[e])} for e in sorted(kept)])
        tracker.metrics(run, {key: row[key] for key in ("accuracy", "uar", "samples", "right", "epoch", "seconds")})
        tracker.end(run)
    for name, part in summary["scores"].items():
        tracker.metrics(
            parent, {f"{metric} {name}".replace(" ", "_"): part[metric] for metric in ("uf1", "uar", "war")}
        )
    tracker.figures(parent, {"confusion": confusion_figure(study, outcomes)})
    tracker.end(parent)


def _print(console: "Console", summary: dict[str, Any], rows: list[list[str]], note: str) -> None:
    from rich.table import Table

    title = f"{summary['model']}, {summary['subjects']} subjects left out in turn, {summary['selection_note']}"
    table = Table(title=title, title_justify="left", min_width=min(110, console.width))
    for number, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if not number else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    if note:
        console.print(note, highlight=False)
    if summary["absent_in_training"]:
        lacking = "; ".join(f"{who}: {', '.join(names)}" for who, names in summary["absent_in_training"].items())
        console.print(f"classes that only the left-out subject shows, so that they cannot be learnt: {lacking}")
