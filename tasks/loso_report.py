"""One report of leaving one subject out: scores pooled in full, by data set and by subject; the confusion matrix."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pthnet.metrics import scores
from pthnet.micro_expressions import FULL
from storage.errors import StorageError
from tasks.figures import confusion_matrix
from tasks.loso_results import LosoStudy
from tasks.loso_train import FoldOutcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SELECTION_NOTES = {
    "last": "last epoch of every subject",
    "best-on-test": "BEST ON TEST: each subject's epoch was chosen on that subject's own test samples",
}
PUBLISHED_NOTE = (
    "published: on the real data sets, best epoch of each subject chosen on that subject's own test samples"
)


def summarize(study: LosoStudy, outcomes: Sequence[FoldOutcome]) -> dict[str, Any]:
    """Scores pooled over folds, by data set and by subject, as JSON.

    Raises
    ------
    StorageError
        When the folds do not test every sample exactly once.
    """
    rows = np.concatenate([outcome.test for outcome in outcomes])
    if not np.array_equal(np.sort(rows), np.arange(len(study.labels))):
        raise StorageError(f"the folds test {len(rows)} samples where {len(study.labels)} are to be tested once each")
    predicted = np.empty(len(study.labels), np.int64)
    for outcome in outcomes:
        predicted[outcome.test] = outcome.logits.argmax(1)
    parts = {FULL: np.ones(len(study.labels), bool)}
    names = list(dict.fromkeys(study.datasets.tolist()))
    if len(names) > 1:
        parts |= {name: study.datasets == name for name in names}
    return {
        "model": study.model,
        "selection": study.selection,
        "selection_note": SELECTION_NOTES[study.selection],
        "classes": list(study.classes),
        "subjects": len(outcomes),
        "scores": {name: _scores(study, predicted, mask, name) for name, mask in parts.items()},
        "by_subject": [_subject(study, predicted, outcome) for outcome in outcomes],
        "absent_in_training": _absent(study),
        "settings": dict(study.settings),
    }


def _scores(study: LosoStudy, predicted: np.ndarray, mask: np.ndarray, name: str) -> dict[str, Any]:
    found = scores(study.labels[mask], predicted[mask], len(study.classes))
    published = study.published.get(name)
    return {
        "samples": int(mask.sum()),
        "uf1": found.uf1,
        "uar": found.uar,
        "war": found.war,
        "recalls": [None if np.isnan(value) else float(value) for value in found.recalls],
        "confusion": found.confusion.tolist(),
        "published": {"uf1": published.uf1, "uar": published.uar} if published else None,
    }


def _subject(study: LosoStudy, predicted: np.ndarray, outcome: FoldOutcome) -> dict[str, Any]:
    target = study.labels[outcome.test]
    found = scores(target, predicted[outcome.test], len(study.classes))
    return {
        "subject": outcome.subject,
        "dataset": str(study.datasets[outcome.test[0]]),
        "samples": len(target),
        "right": int((target == predicted[outcome.test]).sum()),
        "accuracy": found.war,
        "uar": found.uar,
        "classes_shown": int((~np.isnan(found.recalls)).sum()),
        "epoch": outcome.epoch,
        "final_loss": float(outcome.losses[-1]),
        "seconds": outcome.seconds,
    }


def _absent(study: LosoStudy) -> dict[str, list[str]]:
    """Classes that a fold cannot learn because only its left-out subject shows them."""
    lacking = {}
    for fold in study.folds:
        counts = np.bincount(study.labels[fold.train], minlength=len(study.classes))
        if (counts == 0).any():
            lacking[fold.subject] = [name for name, count in zip(study.classes, counts, strict=True) if not count]
    return lacking


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Header and one row a data set: samples, UF1, UAR, and the published ones where there are any."""
    published = any(part["published"] for part in summary["scores"].values())
    rows = [["", "samples", "UF1", "UAR", *(["published UF1", "UAR"] if published else [])]]
    for name, part in summary["scores"].items():
        row = [name, str(part["samples"]), f"{part['uf1']:.4f}", f"{part['uar']:.4f}"]
        if published:
            row += [f"{part['published'][key]:.4f}" if part["published"] else "-" for key in ("uf1", "uar")]
        rows.append(row)
    return rows


def confusion_figure(study: LosoStudy, outcomes: Sequence[FoldOutcome]) -> "Figure":
    """Confusion matrix pooled over all folds."""
    target = np.concatenate([study.labels[outcome.test] for outcome in outcomes])
    predicted = np.concatenate([outcome.logits.argmax(1) for outcome in outcomes])
    figure = confusion_matrix(target, predicted, study.classes)
    figure.suptitle(f"{study.model}, {len(outcomes)} subjects left out, {study.selection}", fontsize=9)
    return figure


def write_report(out: Path, study: LosoStudy, outcomes: Sequence[FoldOutcome]) -> dict[str, Any]:
    """Write results.json, subjects.csv, predictions.csv and confusion.png to `out`; return the summary."""
    summary = summarize(study, outcomes)
    (out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    with open(out / "subjects.csv", "w", newline="") as stream:
        subjects = csv.DictWriter(stream, list(summary["by_subject"][0]))
        subjects.writeheader()
        subjects.writerows(summary["by_subject"])
    with open(out / "predictions.csv", "w", newline="") as stream:
        predictions = csv.writer(stream)
        predictions.writerow(["sample", "subject", "target", "predicted", *(f"logit {name}" for name in study.classes)])
        for outcome in outcomes:
            for row, logits in zip(outcome.test, outcome.logits, strict=True):
                said = study.classes[int(logits.argmax())]
                values = [f"{value:.6g}" for value in logits]
                predictions.writerow(
                    [study.names[row], outcome.subject, study.classes[study.labels[row]], said, *values]
                )
    confusion_figure(study, outcomes).savefig(out / "confusion.png")
    return summary
