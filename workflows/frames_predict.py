"""Predict, and where there are labels score, with a network that looks at frames.

pthnet predict-frames runs/swin_s-coarse/model --root cropped_aligned/ --out coarse.parquet
pthnet predict-frames r3d_18 --weights DFEW_best.pth --list-test lists/test.txt --root clips/
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import numpy as np

    from pthnet.frame_models import FrameModel
    from tasks.frame_batches import FrameLoader


def frames_predict(
    model: str,
    *,
    list_test: str | None = None,
    root: str | None = None,
    out: str = "predictions.parquet",
    submission: str | None = None,
    weights: Path | None = None,
    labels: str | None = None,
    head: Literal["all", "coarse", "negative"] = "all",
    first_frame: int = 1,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    image_size: int | None = None,
    width: int | None = None,
    depths: str | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
) -> int:
    """Predict the samples of a list, or every video below a folder, with a frame model.

    Parameters
    ----------
    model
        The folder model/ that finetune wrote, or models:/<name>@champion; with --weights r3d_18, resnet18 or swin_s.
    list_test
        A list of clips or images, or EXPR files; left out, every folder below --root is a video of face images.
    root
        Where the listed folders, images or videos lie.
    out
        Receives the table (.parquet or .csv): video, frame, uri, label, present, logit_<class>.
    submission
        Folder for the challenge's files, one index per frame; frames without a face take the nearest one's class.
    weights
        An authors' or other weight file, of the model named.
    labels
        Label map of that file, and of the list: dfew by default, affwild2 for swin_s.
    head
        Which of CFC-SP's networks the file is.
    image_size
        Side of its input, pixels, where not as published.
    width
        Channels of its first stage, where not as published.
    depths
        Blocks of its stages, where not as published: "2,2,6,2".
    first_frame
        Number of the image that the first label of an EXPR file belongs to, or of a video's first frame.
    batch_size
        Samples of a forward pass.
    precision
        Of the forward pass.
    tracking_uri
        MLflow whose registry holds the model; finetune/mlflow.db by default.
    address
        Ray cluster to run on; starts Ray on this machine by default.
    """
    import numpy as np
    from rich.console import Console

    from pthnet.cascade import ABAW
    from pthnet.emotions import LABELS, label_map
    from pthnet.errors import ModelError
    from pthnet.frame_models import PUBLISHED, FrameModel
    from storage.errors import StorageError
    from tasks.frame_batches import FrameLoader
    from tasks.frame_lists import frames_of_videos, read_frames
    from tasks.frame_predict import open_frame_model
    from tasks.frame_schedule import FrameSchedule
    from tasks.frame_tables import prediction_table, write_submission, write_table
    from workflows.finetune import classes_of, head_labels

    console = Console()
    described = None
    if weights is not None:
        if model not in PUBLISHED:
            raise ModelError(f"--weights needs the network as MODEL: {', '.join(PUBLISHED)}; found {model!r}")
        known = label_map(labels or ("affwild2" if model == "swin_s" else "dfew"))
        described = FrameModel(
            model=cast(Any, model), classes=classes_of(known.classes, head), head=head, image_size=image_size,
            width=width, depths=tuple(int(d) for d in depths.split(",")) if depths else None,
        )  # fmt: skip
    if model.startswith("models:/"):
        from tasks.registered_frames import fetch_frames
        from tasks.tracking import tracking_uri as tracked

        model = str(fetch_frames(tracked(tracking_uri, "finetune"), model))
    spec, state = open_frame_model(model, weights=weights, described=described)
    if labels is not None:
        known = label_map(labels)
    else:
        names = ABAW.classes if spec.head != "all" else spec.classes
        known = next((m for m in LABELS.values() if m.classes == names), label_map(names))
    if list_test is not None:
        samples = read_frames(list_test, root=root, labels=known, first_frame=first_frame, sample=spec.sample)
    elif root is not None and spec.sample == "image":
        samples = frames_of_videos(root, first_frame=first_frame)
    else:
        raise StorageError(
            "give --list-test, or for an image model --root with a folder of face images for every video"
        )
    target = head_labels(samples, spec.head)
    schedule = FrameSchedule(
        train=np.empty(0, np.int64), validation=np.flatnonzero(samples["present"].to_numpy()), batch_size=batch_size
    )
    loader = FrameLoader(
        train=samples,
        validation=samples,
        train_labels=target,
        validation_labels=target,
        schedule=schedule,
        size=spec.size,
    )
    logits, failures = predict(loader, spec, state, precision=precision, address=address)
    write_table(out, prediction_table(samples, logits, spec.classes))
    for text in failures[:5]:
        console.print(f"unreadable: {text}", highlight=False, soft_wrap=True)
    seen = ~np.isnan(logits).any(axis=1)
    console.print(f"{out}: {int(seen.sum())} of {len(samples)} samples predicted", highlight=False, soft_wrap=True)
    scored = seen & (target >= 0)
    if scored.any():
        _show(console, target[scored], logits[scored].argmax(1), spec)
    if submission is not None:
        if spec.sample != "image" or not seen.any():
            raise StorageError("a submission is made of the frames of videos, and at least one must have a face")
        videos = np.asarray(samples["video"].to_pylist())
        filled = logits[nearest(videos, seen)].argmax(1)
        write_submission(submission, spec.classes, videos, samples["frame"].to_numpy(), filled)
    return 0


def predict(
    loader: "FrameLoader",
    spec: "FrameModel",
    state: dict[str, Any],
    *,
    precision: str = "fp32",
    address: str | None = None,
) -> tuple["np.ndarray", list[str]]:
    """Logits float32 [validation rows, classes], NaN where nothing was seen, and what could not be read."""
    import numpy as np
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    from cluster.connect import connect
    from tasks.frame_batches import arrow_batches
    from tasks.frame_predict import FramePredictor

    have = connect(address)
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    pages = loader.schedule.pages()
    logits = np.full((len(loader.validation), len(spec.classes)), np.nan, np.float32)
    failures: list[str] = []
    if not pages:
        return logits, failures
    DataContext.get_current().enable_progress_bars = False
    make = arrow_batches(ray.put((loader, pages)))
    predicted = (
        ray.data.range(len(pages), override_num_blocks=min(len(pages), 4096))
        .map_batches(
            make,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=TaskPoolStrategy(size=min(max(1, cpus - 1), len(pages))),
            num_cpus=1 if cpus > 1 else 0.5,
        )
        .map_batches(
            FramePredictor,
            fn_constructor_args=(spec, state, precision, "cuda" if gpus else "cpu"),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=max(1, gpus)),
            num_cpus=0.5,
            num_gpus=1 if gpus else 0,
        )
    )
    table: Any
    for table in predicted.iter_batches(batch_size=None, batch_format="pyarrow"):
        index = table["index"].to_numpy()
        logits[index] = np.stack(table["logits"].to_numpy(zero_copy_only=False))
        failures += [text for texts in table["failures"].to_pylist() for text in texts]
    return logits, failures


def nearest(videos: "np.ndarray", seen: "np.ndarray") -> "np.ndarray":
    """For each row the nearest row of its video that was seen (the earlier of two), int64; itself where it was.

    A video without any seen row keeps its own rows.
    """
    import numpy as np

    rows = np.arange(len(videos))
    before = np.maximum.accumulate(np.where(seen, rows, -1))
    after = np.minimum.accumulate(np.where(seen, rows, len(rows))[::-1])[::-1]
    no_before = (before < 0) | (videos[np.maximum(before, 0)] != videos)
    no_after = (after >= len(rows)) | (videos[np.minimum(after, len(rows) - 1)] != videos)
    late = no_before | (~no_after & (after - rows < rows - before))
    chosen = np.where(late, after, before)
    return np.where(no_before & no_after, rows, chosen)


def _show(console: Any, target: "np.ndarray", predicted: "np.ndarray", spec: "FrameModel") -> None:
    from rich.table import Table

    from pthnet.metrics import bootstrap_interval, scores

    found = scores(target, predicted, len(spec.classes))
    console.print(f"{spec.model}, {spec.head}: {len(target)} labelled samples", highlight=False)
    table = Table()
    for name in ("score", "%", "95 % interval"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for name in ("war", "uar", "macro_f1"):
        interval = bootstrap_interval(target, predicted, name, num_classes=len(spec.classes))
        table.add_row(
            name, f"{100 * getattr(found, name):.2f}", f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
        )
    console.print(table)
