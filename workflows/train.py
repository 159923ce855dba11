"""Train forward and reverse PTH-Net on every fold, fuse, score, log and register.

    pthnet train --features features/ --train-list train.txt --test-list test.txt --classes Happy,Sad,Neutral
    pthnet train --features s3://bucket/features --benchmark DFEW --lists lists/

The same command resumes what was interrupted, and only reads back what is finished.
"""

import hashlib
import json as json_module
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console

    from pthnet.benchmarks import Benchmark
    from tasks.train_settings import TrainSettings

Level = Literal["high", "middle", "low"]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train on and how; the defaults are the published procedure, except that the test set chooses nothing.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    benchmark
        A public benchmark (FERV39k, DFEW, MAFW-single, MAFW-compound, CREMA-D, eNTERFACE05, RAVDESS, MELD, CASME-II) or
        a YAML file that describes your own.
    lists
        Folder of the benchmark's list files.
    fold
        Only these folds (from 1); all by default.
    train_list, test_list
        Two lists instead of a benchmark.
    classes
        Class names in the order of the labels, comma-separated; with two lists.
    strip
        Folder to take off the front of the lists' paths, so that they become clip ids.
    extractor
        Which extractor's features; needed when the table holds several.
    backbone_dim
        Refuse features that are not of this size.
    directions
        Train only one direction with "forward" or "reverse".
    levels
        Levels trained; the finest of them decides.
    epochs, milestones, decay, lr, batch
        The benchmark's published schedule when left out; milestones follow a changed number of epochs in proportion.
    per_worker_batch
        Let the global batch grow with the workers instead of keeping it.
    selection
        Which epoch's weights are kept. The papers choose on the test set: that is best-on-test.
    mu
        Weight of the forward logits, or "validation" to choose it there.
    validation
        Share of the training clips held out; 0.1 when something is chosen on it.
    loss, gamma
        "ecstfl" adds gamma times the EC-STFL loss on the pooled features.
    standardize
        Standardise features by the training clips; kept with the model.
    class_weights, balanced
        Weigh the cross entropy by inverse class frequency; draw classes equally often.
    ema, patience
        Running average of the weights; stop after so many epochs without a better score.
    precision
        fp32, or bf16 autocast.
    dim, mlp_dim, downsample, drop_path
        Sizes of the network.
    workers
        DDP workers of each training; by default 2 on CPUs, 1 on GPUs.
    out
        Where runs are kept, local or s3://; all nodes must reach it.
    run_name
        Names the run; by default it follows from the data and settings, so that the same command resumes.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else a SQLite file in `out`.
    experiment
        MLflow experiment.
    model_name
        Registered model; by default pthnet-<benchmark>.
    register
        Which folds' fused models to register.
    figures
        Draw figures.
    allow_missing
        Leave out listed clips without features instead of refusing.
    address
        Ray cluster to join.
    """

    features: str
    benchmark: str | None = None
    lists: str | None = None
    fold: tuple[int, ...] = ()
    train_list: str | None = None
    test_list: str | None = None
    classes: tuple[str, ...] = ()
    strip: str = ""
    extractor: str | None = None
    backbone_dim: int | None = None
    directions: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")
    levels: tuple[Level, ...] = ("high", "middle", "low")
    epochs: int | None = None
    milestones: tuple[int, ...] | None = None
    decay: float | None = None
    lr: float | None = None
    batch: int | None = None
    per_worker_batch: bool = False
    noise: float = 0.0005
    selection: Literal["last", "validation", "best-on-test"] = "last"
    select_by: Literal["uar", "war"] = "uar"
    mu: float | Literal["validation"] = 0.7
    validation: float | None = None
    loss: Literal["pyramid", "ecstfl"] = "pyramid"
    gamma: float = 10.0
    standardize: bool = False
    class_weights: bool = False
    balanced: bool = False
    ema: float = 0.0
    patience: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    dim: int = 512
    mlp_dim: int = 768
    downsample: Literal["max", "avg"] = "max"
    drop_path: float = 0.1
    seed: int = 0
    workers: int | None = None
    max_failures: int = 3
    out: str = "runs"
    run_name: str | None = None
    tracking_uri: str | None = None
    experiment: str = "pthnet"
    model_name: str | None = None
    register: Literal["first", "all", "none"] = "first"
    figures: bool = True
    allow_missing: bool = False
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training left.

    Attributes
    ----------
    run_name, folder : str
        The run and where its checkpoints, results.json, figures and models lie.
    benchmark, extractor, table_version
        What was trained on.
    summary : dict
        As `tasks.report.summarize` returns it.
    published : dict
        View -> model -> {uar, war}, fractions; empty where not public.
    notes : list of str
        What a reader of the table must know: overlaps, missing clips, how epoch and mu were chosen.
    registered : list of dict
        name, version, champion, reason, uri of every registered model.
    tracking_uri, mlflow_run : str
    models : dict of fold to local folder of its bundle
    seconds : float
    """

    run_name: str
    folder: str
    benchmark: str
    extractor: str
    table_version: int
    summary: dict[str, Any]
    published: dict[str, Any]
    notes: list[str]
    registered: list[dict[str, Any]]
    tracking_uri: str
    mlflow_run: str
    models: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def score(self, system: str, metric: str = "uar") -> float:
        """A pooled score as a fraction: system "forward", "reverse" or "fused"."""
        return float(self.summary["systems"][system]["pooled"][metric])


def train(request: Annotated[TrainRequest, Parameter(name="*")], *, json: bool = False) -> int:
    """Train forward and reverse PTH-Net, fuse and register them.

    Parameters
    ----------
    json
        Print one JSON object on standard output instead of the table.
    """
    from rich.console import Console

    from workflows.train_table import show

    result = run_training(request, Console(stderr=True))
    if json:
        print(json_module.dumps(asdict(result)))
    else:
        show(result, Console(file=sys.stdout))
    return 0


def run_training(request: TrainRequest, console: "Console") -> TrainResult:
    """The whole training, top-down: lists -> features -> fits -> fusion -> scores -> MLflow -> registry.

    Raises
    ------
    ModelError, StorageError, ClusterError
        For what a user can put right.
    """
    from cluster.connect import connect
    from tasks.tracking import Tracker, tracking_uri
    from workflows.fits import Fit, plan_fits, run_fits
    from workflows.train_data import feature_refs, read_data
    from workflows.train_outcome import conclude

    began = time.perf_counter()
    data = read_data(request)
    settings = settings_of(request, data.benchmark, data.dim)
    name = request.run_name or _run_name(data.benchmark, settings, data.facts, request)
    out = _absolute(request.out)
    folder = f"{out}/{name}"
    uri = tracking_uri(request.tracking_uri, out)
    for note in data.notes:
        console.print(note, highlight=False)

    resources = connect(request.address)
    fits_wanted = len(data.census.splits) * len(request.directions)
    plan = plan_fits(fits_wanted, resources, request.workers)
    if request.per_worker_batch:
        settings = _scaled(settings, plan.workers)
    with ThreadPoolExecutor(1) as side:
        # MLflow migrates its database for some seconds: meanwhile the trainings start.
        artifacts = None if "://" in out else f"{out}/mlartifacts"
        tracker: Future[Tracker] = side.submit(Tracker, uri, request.experiment, artifacts)
        refs = feature_refs(request, data)
        _claim(folder, settings, data.facts)
        fits = [
            Fit(name=f"fold-{split.fold}-{direction}", features=refs[direction], split=split, settings=settings)
            for split in data.census.splits
            for direction in request.directions
        ]
        states = run_fits(fits, plan, folder, console, max_failures=request.max_failures)
        return conclude(
            request,
            data,
            settings,
            states,
            refs,
            name=name,
            folder=folder,
            tracker=tracker.result(),
            began=began,
            console=console,
        )


def settings_of(request: TrainRequest, benchmark: "Benchmark", in_dim: int) -> "TrainSettings":
    """The request's settings over the benchmark's published schedule."""
    from pthnet.pth_net import PTHNetConfig
    from tasks.train_settings import TrainSettings

    schedule = benchmark.schedule
    epochs = request.epochs or schedule.epochs
    milestones = request.milestones
    if milestones is None:
        milestones = tuple(round(milestone * epochs / schedule.epochs) for milestone in schedule.milestones)
    return TrainSettings(
        model=PTHNetConfig(
            in_dim=in_dim,
            dim=request.dim,
            mlp_dim=request.mlp_dim,
            num_classes=benchmark.num_classes,
            drop_path=request.drop_path,
            downsample=request.downsample,
            standardize=request.standardize,
        ),
        epochs=epochs,
        milestones=milestones,
        decay=schedule.factor if request.decay is None else request.decay,
        lr=schedule.learning_rate if request.lr is None else request.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        batch=request.batch or schedule.batch_size,
        noise=request.noise,
        levels=request.levels,
        loss=request.loss,
        gamma=request.gamma,
        class_weights=request.class_weights,
        balanced=request.balanced,
        ema=request.ema,
        patience=request.patience,
        selection=request.selection,
        select_by=request.select_by,
        precision=request.precision,
        seed=request.seed,
    )


def _scaled(settings: "TrainSettings", workers: int) -> "TrainSettings":
    from dataclasses import replace

    return replace(settings, batch=settings.batch * workers)


def _absolute(out: str) -> str:
    from pathlib import Path

    return out.rstrip("/") if "://" in out else str(Path(out).resolve())


def _run_name(benchmark: "Benchmark", settings: "TrainSettings", facts: dict[str, Any], request: TrainRequest) -> str:
    """Readable, and the same for the same data and settings."""
    text = json_module.dumps([settings.to_dict(), facts, request.directions], sort_keys=True)
    readable = "".join(c if c.isalnum() else "-" for c in benchmark.name.lower()).strip("-")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _claim(folder: str, settings: "TrainSettings", facts: dict[str, Any]) -> None:
    """Write down what the run is of; refuse to go on with another run's checkpoints."""
    from pthnet.errors import ModelError
    from storage.files import join, read_bytes, write_atomic

    wanted = {"settings": settings.to_dict(), "data": facts}
    path = join(folder, "run.json")
    try:
        found = json_module.loads(read_bytes(path))
    except FileNotFoundError:
        write_atomic(path, json_module.dumps(wanted, indent=2).encode())
        return
    wanted = json_module.loads(json_module.dumps(wanted))
    changed = [
        key
        for part in ("settings", "data")
        for key in wanted[part]
        if wanted[part][key] != found.get(part, {}).get(key)
    ]
    if changed:
        raise ModelError(
            f"{folder} is a run with other {', '.join(changed)}; keep them to resume it, or give another --run-name"
        )
