"""CFC-SP's last step: smooth the outputs of a coarse and a negative network, cascade them, score, write the submission.

pthnet cascade coarse/predictions.parquet negative/predictions.parquet --out cascade/
pthnet cascade coarse_windows.parquet fine_windows.parquet --group Negative --out cascade/     # two PTH-Nets
"""

import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from pthnet.cascade import ClassMap
    from tasks.frame_tables import Outputs


def cascade(
    coarse: str,
    negative: str,
    *,
    out: str = "cascade",
    w: int = 2,
    form: Literal["argmax", "probability"] = "argmax",
    group: str = "Negative",
    flat: str | None = None,
    labels: str | None = None,
) -> int:
    """Combine the predictions of two networks over the frames, or the windows, of whole videos.

    Parameters
    ----------
    coarse
        Table (.parquet or .csv) of the coarse network's predictions: video (or clip), frame (or start),
        logit_<class> or
        p_<class>, and label where it is known. Every frame of a video has a row, also those without a face
        (nulls), as
        predict-frames and finetune write them. PTH-Net's window predictions do as well.
    negative
        The same of the network that tells the negative classes apart, for the same positions.
    out
        Folder or s3:// prefix: submission/ (frames), predictions.parquet, report.json, figures/.
    w
        Positions on each side that smoothing averages over; 2 in the paper. -1 leaves smoothing out.
    form
        argmax: the paper's cascade. probability: p(k) = p(group) p(k | group), ours.
    group
        The coarse class that the second network tells apart.
    flat
        Table of one network over all classes, to compare with.
    labels
        What the tables' labels mean: "all" (positions in the cascade's classes), or a label map whose names are
        matched. Frame tables carry positions in Aff-Wild2's classes.
    """
    import numpy as np
    from rich.console import Console

    from pthnet.cascade import cascade as combine
    from pthnet.cascade import cascade_probabilities, class_map, smooth
    from pthnet.errors import ModelError
    from storage import files
    from tasks.frame_tables import read_outputs, same_rows, write_submission
    from workflows.frames_predict import nearest

    first, second = read_outputs(coarse), read_outputs(negative)
    same_rows(first, second)
    if not len(first.videos):
        raise ModelError(f"{coarse} holds no rows")
    grouping = class_map(first.classes, group, second.classes)
    target = _targets(first, second, grouping, labels)
    present = first.present & second.present

    def of(c: "np.ndarray", n: "np.ndarray", how: str) -> "np.ndarray":
        return (
            combine(c, n, classes=grouping)
            if how == "argmax"
            else cascade_probabilities(c, n, classes=grouping).argmax(1)
        )

    width = max(w, 0)
    raw = [np.where(present[:, None], x.logits, 0.0) for x in (first, second)]
    soft = [smooth(x.logits, x.videos, x.present, width) for x in (first, second)] if w >= 0 else raw
    plain = nearest(first.videos, present)  # what a frame without a face gets where nothing is smoothed
    systems = {
        f"cascade, {form}": of(raw[0], raw[1], form)[plain],
        f"cascade, {form}, smoothed": of(soft[0], soft[1], form),
    }
    other = "probability" if form == "argmax" else "argmax"
    systems[f"cascade, {other}, smoothed"] = of(soft[0], soft[1], other)
    if flat is not None:
        whole = read_outputs(flat)
        same_rows(first, whole)
        order = [whole.classes.index(name) for name in grouping.classes if name in whole.classes]
        if len(order) != len(grouping.classes):
            raise ModelError(
                f"{flat} has the classes {', '.join(whole.classes)}, needed are {', '.join(grouping.classes)}"
            )
        of_flat = np.where(whole.present[:, None], whole.logits, 0.0)[:, order]
        systems["flat"] = of_flat.argmax(1)[nearest(first.videos, whole.present)]
        smoothed = smooth(whole.logits[:, order], whole.videos, whole.present, width) if w >= 0 else of_flat
        systems["flat, smoothed"] = smoothed.argmax(1)
    # a frame whose whole window holds no face has no outputs at all: it takes the nearest frame's class
    blind = ~_within_reach(first.videos, present, width if w >= 0 else 0)
    for name, predicted in systems.items():
        systems[name] = np.where(blind, predicted[plain], predicted)
    chosen = systems[f"cascade, {form}, smoothed"]
    probabilities = cascade_probabilities(soft[0], soft[1], classes=grouping)
    report = _report(systems, target, grouping, w, form)
    _write(out, first, target, chosen, probabilities, grouping, report)
    if first.is_frames:
        write_submission(files.join(out, "submission"), grouping.classes, first.videos, first.frames, chosen)
    _show(Console(), report)
    print(f"predictions, report and figures in {out}")
    return 0


def _within_reach(videos: "np.ndarray", present: "np.ndarray", w: int) -> "np.ndarray":
    """Whether the window of each row holds a face, bool [N]."""
    import numpy as np

    from pthnet.cascade import smooth

    return smooth(np.ones((len(videos), 1)), videos, present, w)[:, 0] > 0


def _targets(first: "Outputs", second: "Outputs", grouping: "ClassMap", labels: str | None) -> "np.ndarray":
    """Labels of the rows as positions in the cascade's classes, -1 where unknown."""
    import numpy as np

    from pthnet.cascade import ABAW
    from pthnet.emotions import LabelMap, label_map
    from pthnet.errors import ModelError

    given = np.where(first.labels >= 0, first.labels, second.labels)
    ours = LabelMap(name="cascade", classes=grouping.classes)
    if labels == "all" or (labels is None and grouping is ABAW):
        theirs = ours
    elif labels is None:
        if (given >= 0).any():
            raise ModelError("the tables hold labels; say what they mean with --labels (all, or a label map)")
        theirs = ours
    else:
        theirs = label_map(labels)
    if given.max(initial=-1) >= len(theirs.classes):
        raise ModelError(
            f"a label {given.max()} among the {len(theirs.classes)} classes of {theirs.name!r}; choose --labels"
        )
    return np.append(theirs.to(ours), -1)[given]


def _report(systems: dict[str, Any], target: "np.ndarray", grouping: "ClassMap", w: int, form: str) -> dict[str, Any]:
    from pthnet.metrics import bootstrap_interval, scores

    known = target >= 0
    report: dict[str, Any] = {
        "classes": grouping.classes,
        "w": w,
        "form": form,
        "rows": len(target),
        "scored": int(known.sum()),
    }
    report["systems"] = {}
    for name, predicted in systems.items() if known.any() else ():
        found = scores(target[known], predicted[known], len(grouping.classes))
        interval = bootstrap_interval(target[known], predicted[known], "macro_f1", num_classes=len(grouping.classes))
        report["systems"][name] = {
            "macro_f1": found.macro_f1,
            "uf1": found.uf1,  # a class that occurs nowhere counts 0
            "interval": [interval.low, interval.high],
            "war": found.war,
            "uar": found.uar,
            "recalls": found.recalls.tolist(),
        }
    return report


def _write(
    out: str, rows: "Outputs", target: "np.ndarray", chosen: "np.ndarray", probabilities: "np.ndarray",
    grouping: "ClassMap", report: dict[str, Any],
) -> None:  # fmt: skip
    import io

    import pyarrow as pa

    from storage import files
    from tasks.figures import confusion_matrix
    from tasks.frame_tables import write_table

    columns = {
        "video": rows.videos,
        "frame" if rows.is_frames else "start": rows.frames,
        "label": target,
        "predicted": chosen,
    }
    columns |= {f"p_{name}": probabilities[:, index] for index, name in enumerate(grouping.classes)}
    write_table(files.join(out, "predictions.parquet"), pa.table(columns))
    files.write_atomic(files.join(out, "report.json"), json.dumps(report, indent=1).encode())
    known = target >= 0
    if known.any():
        picture = io.BytesIO()
        confusion_matrix(target[known], chosen[known], grouping.classes).savefig(picture, format="png")
        files.write_atomic(files.join(out, "figures/confusion.png"), picture.getvalue())


def _show(console: Any, report: dict[str, Any]) -> None:
    from rich.table import Table

    if not report["systems"]:
        console.print(f"{report['rows']} rows predicted; without labels nothing is scored", highlight=False)
        return
    console.print(
        f"{report['scored']} of {report['rows']} rows labelled, {len(report['classes'])} classes, w {report['w']}",
        highlight=False,
    )
    table = Table()
    for name in ("system", "macro F1 %", "95 % interval, by row", "accuracy %"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for name, found in report["systems"].items():
        low, high = found["interval"]
        table.add_row(
            name, f"{100 * found['macro_f1']:.2f}", f"{100 * low:.2f} to {100 * high:.2f}", f"{100 * found['war']:.2f}"
        )
    console.print(table)
    flat, ours = report["systems"].get("flat, smoothed"), report["systems"][f"cascade, {report['form']}, smoothed"]
    if flat:
        more = 100 * (ours["macro_f1"] - flat["macro_f1"])
        verdict = "beats" if ours["macro_f1"] > flat["macro_f1"] else "does not beat"
        console.print(f"the cascade {verdict} the flat network: {more:+.2f} points of macro F1", highlight=False)
