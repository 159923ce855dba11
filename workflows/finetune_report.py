"""What a fine-tuning says while it runs, and what it leaves: model, predictions, report, figures and an MLflow run."""

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from pthnet.frame_models import FrameModel
    from tasks.finetune_state import FinetuneSettings, FinetuneState
    from tasks.frame_batches import FrameLoader


@contextmanager
def following(progress: str, epochs: int, console: "Console") -> Iterator[None]:
    """Say what the training wrote after each epoch: every epoch on a terminal, every tenth of them elsewhere."""
    from storage.files import read_bytes

    stop = threading.Event()
    said = 0

    def look() -> None:
        nonlocal said
        try:
            history = json.loads(read_bytes(progress))
        except FileNotFoundError:
            return
        for record in history[said:]:
            if console.is_terminal or record["epoch"] % max(1, epochs // 10) == 0 or record["epoch"] == epochs:
                console.print(line(record, epochs), highlight=False, soft_wrap=True)
        said = max(said, len(history))

    def watch() -> None:
        while not stop.wait(1.0):
            look()

    try:
        # a resumed run does not repeat what an earlier command said
        said = len(json.loads(read_bytes(progress)))
    except FileNotFoundError:
        said = 0
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    look()


def line(record: Mapping[str, Any], epochs: int) -> str:
    """One epoch in one line."""
    text = f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.4f}  train {100 * record['train_war']:.2f} %"
    if "validation_war" in record:
        text += (
            f"  validation WAR {100 * record['validation_war']:.2f}  macro F1 {100 * record['validation_macro_f1']:.2f}"
        )
    text += f"  {record['samples_per_s']:,.1f} samples/s, {100 * record['waited_share']:.0f} % of it waiting for data"
    if record["unreadable"]:
        text += f"  {record['unreadable']} samples unreadable"
    return text


def finish(
    folder: str, state: "FinetuneState", loader: "FrameLoader", spec: "FrameModel", settings: "FinetuneSettings"
) -> dict[str, Any]:
    """Write model/, predictions.parquet, report.json and figures/; returns the report."""
    from dataclasses import asdict

    import numpy as np

    from pthnet.frame_weights import save_frame_model
    from pthnet.metrics import METRICS, bootstrap_interval, scores
    from storage import files
    from tasks.frame_tables import prediction_table, upload, write_table

    assert state.logits is not None  # set by the first epoch
    logits = state.logits.numpy()
    labels = loader.validation_labels
    scored = (labels >= 0) & ~np.isnan(logits).any(axis=1)
    report: dict[str, Any] = {
        "model": json.loads(spec.to_json()),
        "settings": asdict(settings),
        "epoch": state.chosen_epoch,
        "selection": settings.selection,
        "train_samples": len(loader.schedule.train),
        "validation_samples": int(scored.sum()),
        "validation_rows": len(labels),
        "history": state.history,
    }
    figures: dict[str, Figure] = {"learning": curves(state.history)}
    if scored.any():
        from tasks.figures import confusion_matrix

        target, predicted = labels[scored], logits[scored].argmax(1)
        reached = scores(target, predicted, len(spec.classes))
        report["scores"] = {name: getattr(reached, name) for name in METRICS}
        report["recalls"] = dict(zip(spec.classes, reached.recalls.tolist(), strict=True))
        interval = bootstrap_interval(target, predicted, settings.select_by, num_classes=len(spec.classes))
        report["interval"] = {settings.select_by: [interval.low, interval.high]}
        figures["confusion"] = confusion_matrix(target, predicted, spec.classes)
    network = spec.build()
    network.load_state_dict(state.chosen or state.model)
    with tempfile.TemporaryDirectory() as place:
        facts = {"epoch": state.chosen_epoch, "scores": report.get("scores", {})}
        save_frame_model(Path(place) / "model", spec, network, facts)
        (Path(place) / "figures").mkdir()
        for name, figure in figures.items():
            figure.savefig(Path(place) / f"figures/{name}.png")
        upload(Path(place), folder)
    write_table(files.join(folder, "predictions.parquet"), prediction_table(loader.validation, logits, spec.classes))
    files.write_atomic(files.join(folder, "report.json"), json.dumps(report, indent=1).encode())
    return report


def curves(history: list[dict[str, float]]) -> "Figure":
    """Loss by epoch with its two parts, and the scores on both lists."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=120)
    loss, score = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for name, label in (("loss", "total"), ("ce", "cross entropy"), ("ecstfl", "EC-STFL, before its weight")):
        values = [record[name] for record in history]
        if any(values):
            loss.plot(epochs, values, marker=".", label=label)
    for name in ("train_war", "validation_war", "validation_macro_f1"):
        if name in history[-1]:
            score.plot(epochs, [100 * record.get(name, float("nan")) for record in history], marker=".", label=name)
    loss.set(xlabel="epoch", ylabel="loss")
    score.set(xlabel="epoch", ylabel="%")
    for axes in (loss, score):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def show(console: "Console", report: Mapping[str, Any], spec: "FrameModel") -> None:
    """Print the scores as a table."""
    from rich.table import Table

    if "scores" not in report:
        console.print("the validation list has no labels for this network: predicted, not scored", highlight=False)
        return
    chosen = "last epoch" if report["selection"] == "last" else "best epoch on the list it is scored on"
    title = f"{spec.model}, {spec.head} ({len(spec.classes)} classes), epoch {report['epoch']} ({chosen})"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table()
    for name in ("samples", "WAR", "UAR", "macro F1"):
        table.add_column(name, justify="right")
    found = report["scores"]
    table.add_row(str(report["validation_samples"]), *(f"{100 * found[n]:.2f}" for n in ("war", "uar", "macro_f1")))
    console.print(table)
    recalls = Table("class", "recall %")
    for name, value in report["recalls"].items():
        recalls.add_row(name, "none" if value != value else f"{100 * value:.2f}")
    console.print(recalls)


def track(
    report: Mapping[str, Any], state: "FinetuneState", loader: "FrameLoader", spec: "FrameModel", *, folder: str,
    out: str, uri: str | None, experiment: str, register: str | None, lists: Mapping[str, str],
) -> None:  # fmt: skip
    """Tell MLflow: settings, every epoch, final scores, figures and the model; register it when a name is given."""
    import hashlib

    from pthnet.frame_weights import DESCRIPTION, WEIGHTS
    from storage.files import is_s3, join, read_bytes
    from tasks.registered_frames import list_digest, register_frames
    from tasks.tracking import Tracker, tracking_uri

    tracker = Tracker(
        tracking_uri(uri, out), experiment, None if uri or is_s3(out) else f"{Path(out).resolve()}/mlartifacts"
    )
    key = f"{folder}:{hashlib.sha256(json.dumps(state.settings, sort_keys=True).encode()).hexdigest()[:12]}"
    run = tracker.begin(folder.rstrip("/").rsplit("/", 1)[-1], key, {"pthnet.model": report["model"]["model"]})
    model = {f"model.{name}": value for name, value in report["model"].items()}
    tracker.params(run, {**report["settings"], **model, **lists, "folder": folder})
    tracker.history(run, state.history)
    if "scores" in report:
        tracker.metrics(run, {f"final_{name}": value for name, value in report["scores"].items()})
    tracker.figures(run, {"learning": curves(state.history)})
    with tempfile.TemporaryDirectory() as place:
        for name in (WEIGHTS, DESCRIPTION):
            (Path(place) / name).write_bytes(read_bytes(join(folder, "model", name)))
        if register and "scores" in report:
            rows, labels = loader.validation, loader.validation_labels
            done = register_frames(
                tracker,
                run,
                place,
                spec,
                register,
                scores=report["scores"],
                data=list_digest(rows, labels, spec.classes),
            )
            print(f"registered {done.uri}: {done.reason}")
        else:
            tracker.client.log_artifacts(run, place, "model")
    tracker.end(run)
