"""Train a network that looks at frames: EC-STFL's on clips and images, CFC-SP's coarse and negative classifiers.

    pthnet finetune --list-train lists/train.txt --list-val lists/test.txt --root faces/ --model r3d_18 --gamma 10
    pthnet finetune --list-train EXPR/train --list-val EXPR/val --root cropped_aligned/ --model swin_s --head coarse

The same command resumes what was interrupted, and only reads back what is finished.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pthnet.frame_models import FrameModel
    from tasks.finetune_state import FinetuneSettings, FinetuneState
    from tasks.frame_batches import FrameLoader

MOST_FAILURES = 2


def finetune(
    *,
    list_train: str,
    list_val: str,
    root: str | None = None,
    model: Literal["r3d_18", "resnet18", "swin_s"] = "r3d_18",
    head: Literal["all", "coarse", "negative"] = "all",
    labels: str | None = None,
    first_frame: int = 1,
    out: str = "finetune",
    run_name: str | None = None,
    gamma: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    warmup_epochs: float | None = None,
    step_epochs: int | None = None,
    balanced: bool | None = None,
    augment: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    selection: Literal["last", "best"] | None = None,
    seed: int | None = None,
    init: Path | None = None,
    image_size: int | None = None,
    width: int | None = None,
    depths: str | None = None,
    workers: int | None = None,
    tracking_uri: str | None = None,
    experiment: str = "pthnet-frames",
    track: bool = True,
    register: str | None = None,
    address: str | None = None,
) -> int:
    """Train a frame model with its published recipe; options left out keep it.

    Parameters
    ----------
    list_train
        "<folder> <frames> <label>" list for clips, CSV with filePath,expression for images, or an Aff-Wild2
        EXPR file or a
        folder of them.
    list_val
        The same, to validate on.
    root
        Where the listed folders, images or videos lie; needed for EXPR files.
    model
        r3d_18: EC-STFL on clips. resnet18: EC-STFL on images. swin_s: CFC-SP.
    head
        Which of CFC-SP's networks: coarse (5 classes), negative (4), or all for one flat classifier.
    labels
        Label map of the lists: dfew, dfew-from-1, ferv39k, rafdb, rafdb-from-0, afew, affwild2, or class names with
        commas. dfew by default, affwild2 for swin_s.
    first_frame
        EXPR files: number of the image that the first label belongs to, 0 or 1.
    out
        Folder or s3:// prefix that runs are kept in.
    run_name
        Folder below it: checkpoints, model/, predictions.parquet, report.json and figures/.
    gamma
        Weight of the EC-STFL loss; 0 trains with cross entropy alone.
    epochs
        Of training; this and what follows is the published recipe of the model by default.
    batch_size
        Samples of a step, for each worker.
    lr
        Learning rate.
    weight_decay
        Of the optimizer.
    warmup_epochs
        Over which the learning rate rises from nothing.
    step_epochs
        After so many epochs each the learning rate falls to a tenth.
    balanced
        Draw classes equally often.
    augment
        Which augmentation of the frames.
    precision
        fp32, or bf16 by autocast.
    selection
        last, or best: the epoch that scores best on --list-val, as the papers do with the list they report on.
    seed
        Of weights, order and augmentation.
    init
        Weights to start from: torchvision's or timm's file, an authors' checkpoint, .pdparams, .safetensors.
    image_size
        Side of the input, pixels, where not as published.
    width
        Channels of the first stage, where not as published.
    depths
        Blocks of the stages, where not as published: "2,2,6,2".
    workers
        Train workers; one per GPU by default, else one.
    tracking_uri
        MLflow; a SQLite file below --out by default.
    experiment
        Its name in MLflow.
    track
        Log to MLflow.
    register
        Name in MLflow's registry: it becomes `candidate`, and `champion` when it is better on the same --list-val.
    address
        Ray cluster to run on; starts Ray on this machine by default.
    """
    from rich.console import Console

    from pthnet.emotions import label_map
    from pthnet.frame_models import FrameModel
    from storage.files import join
    from tasks.finetune_state import FinetuneSettings
    from workflows.finetune_report import finish, show
    from workflows.finetune_report import track as track_run

    console = Console()
    settings = FinetuneSettings.published(model).changed(
        gamma=gamma, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, balanced=balanced,
        warmup_epochs=warmup_epochs, step_epochs=step_epochs, augment=augment, precision=precision,
        selection=selection, seed=seed,
    )  # fmt: skip
    known = label_map(labels or ("affwild2" if model == "swin_s" else "dfew"))
    spec = FrameModel(
        model=model,
        classes=classes_of(known.classes, head),
        head=head,
        image_size=image_size,
        width=width,
        depths=tuple(int(d) for d in depths.split(",")) if depths else None,
    )
    loader = _loader(list_train, list_val, root, known, first_frame, spec, settings)
    folder = join(out, run_name or f"{model}-{head}")
    state = _train(folder, loader, spec, settings, init, workers, address, console)
    report = finish(folder, state, loader, spec, settings)
    show(console, report, spec)
    if track:
        lists = {"list_train": list_train, "list_val": list_val, "root": root or ""}
        track_run(
            report, state, loader, spec, folder=folder, out=out, uri=tracking_uri, experiment=experiment,
            register=register, lists=lists,
        )  # fmt: skip
    console.print(f"model, predictions and report in {folder}", highlight=False)
    return 0


def classes_of(classes: tuple[str, ...], head: str) -> tuple[str, ...]:
    """Class names of one network; coarse and negative are made of Aff-Wild2's eight classes only."""
    from pthnet.cascade import ABAW
    from pthnet.errors import ModelError

    if head == "all":
        return classes
    if classes != ABAW.classes:
        raise ModelError(f"--head {head} groups the classes {', '.join(ABAW.classes)}; use it with --labels affwild2")
    return ABAW.names(head)


def head_labels(table: "pa.Table", head: str) -> "np.ndarray":
    """Labels int64 of a FRAMES table for one network, -1 where it has none."""
    import numpy as np

    from pthnet.cascade import ABAW

    labels = table["label"].to_numpy().astype(np.int64)
    return labels if head == "all" else ABAW.labels(labels, head)


def _loader(
    list_train: str, list_val: str, root: str | None, known: Any, first_frame: int, spec: "FrameModel",
    settings: "FinetuneSettings",
) -> "FrameLoader":  # fmt: skip
    import numpy as np

    from pthnet.augment import AUGMENT
    from pthnet.errors import ModelError
    from tasks.frame_batches import FrameLoader
    from tasks.frame_lists import read_frames
    from tasks.frame_schedule import FrameSchedule, class_balance

    if settings.augment not in AUGMENT:
        raise ModelError(f"no augmentation {settings.augment!r}; known: {', '.join(AUGMENT)}")
    how: dict[str, Any] = {"root": root, "labels": known, "first_frame": first_frame, "sample": spec.sample}
    train, validation = read_frames(list_train, **how), read_frames(list_val, **how)
    train_labels, validation_labels = head_labels(train, spec.head), head_labels(validation, spec.head)
    usable = np.flatnonzero((train_labels >= 0) & train["present"].to_numpy())
    if not len(usable):
        raise ModelError(f"{list_train} has no labelled sample with an image for {', '.join(spec.classes)}")
    schedule = FrameSchedule(
        train=usable,
        validation=np.flatnonzero(validation["present"].to_numpy()),
        repeats=class_balance(train_labels[usable]) if settings.balanced else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    return FrameLoader(
        train=train,
        validation=validation,
        train_labels=train_labels,
        validation_labels=validation_labels,
        schedule=schedule,
        size=spec.size,
        augment=AUGMENT[settings.augment].at(spec.size),
    )


def _train(
    folder: str, loader: "FrameLoader", spec: "FrameModel", settings: "FinetuneSettings", init: Path | None,
    workers: int | None, address: str | None, console: Any,
) -> "FinetuneState":  # fmt: skip
    """One TorchTrainer, from its last checkpoint on; what is finished is only read back."""
    import os

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # short epochs would wait for its 2 s
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.connect import connect
    from cluster.errors import ClusterError
    from pthnet.errors import ModelError
    from pthnet.frame_weights import load_frame_weights
    from storage.files import filesystem, is_s3, join, read_bytes, size_of, write_atomic
    from tasks.finetune import train_loop
    from tasks.finetune_state import FinetuneState, check_settings
    from workflows.finetune_report import following

    fs, root = filesystem(folder)

    def load(name: str) -> FinetuneState:
        with ray.train.Checkpoint(f"{root}/{name}", filesystem=fs).as_directory() as local:
            return FinetuneState.load(local)

    done = join(folder, "done.json")
    if size_of(done) is not None:
        state = load(json.loads(read_bytes(done))["checkpoint"])
        check_settings(state, spec, settings)
        if state.epoch == settings.epochs:
            return state
    start = None
    if init is not None:
        network = spec.build()
        dropped = load_frame_weights(init, network, head="fresh")
        console.print(f"starting from {init}" + (f", without {', '.join(dropped)}" if dropped else ""), highlight=False)
        start = network.state_dict()
    have = connect(address)
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    workers = workers or max(1, gpus)
    if workers > (gpus or cpus):
        raise ClusterError(
            f"{workers} workers need as many {'GPU' if gpus else 'CPU'}s; the cluster has {gpus or cpus}"
        )
    spare = max(1, (cpus - workers) // workers)
    # where no CPU is spare, the tasks that feed the workers get half of each: they would wait for ever else
    share = 1.0 if cpus > workers else 0.5
    trainer = TorchTrainer(
        cast(Any, train_loop),  # Ray's stubs know no loop that returns something
        train_loop_config={
            "loader": ray.put(loader),
            "spec": spec,
            "settings": settings,
            "init": start,
            "cpus": spare,
            "cpus_each": share,
            "threads": 1 if gpus else max(1, cpus // workers - 1),
            "progress": join(folder, "progress.json"),
        },
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": share, **({"GPU": 1} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=root.rsplit("/", 1)[-1],
            storage_path=root.rsplit("/", 1)[0],
            storage_filesystem=fs if is_s3(folder) else None,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=MOST_FAILURES),
        ),
    )
    try:
        with following(join(folder, "progress.json"), settings.epochs, console):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        first = str(error).strip().splitlines()[-1]
        raise ClusterError(
            f"training failed {MOST_FAILURES + 1} times ({first}); the same command resumes it"
        ) from error
    returned: Any = getattr(result, "return_value", None) or {}
    if returned.get("refused"):
        raise ModelError(returned["refused"])
    if result.checkpoint is None:
        raise ClusterError("training ended without a checkpoint; run the same command again")
    name = result.checkpoint.path.rstrip("/").rsplit("/", 1)[-1]
    write_atomic(done, json.dumps({"checkpoint": name}).encode())
    return load(name)
