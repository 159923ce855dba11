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
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from workflows.train_request import TrainRequest, settings_of

__all__ = ["TrainRequest", "TrainResult", "run_training", "settings_of", "train"]

if TYPE_CHECKING:
    from rich.console import Console

    from pthnet.benchmarks import Benchmark
    from tasks.train_settings import TrainSettings


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


def train(request: Annotated[TrainRequest, Parameter(name="*", negative_iterable=())], *, json: bool = False) -> int:
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
    from cluster.connect import connect, node_resources
    from storage.files import absolute
    from tasks.tracking import Tracker, tracking_uri
    from workflows.fits import Fit, plan_fits, run_fits
    from workflows.train_data import feature_refs, read_data
    from workflows.train_outcome import conclude

    began = time.perf_counter()
    data = read_data(request)
    settings = settings_of(request, data.benchmark, data.dim)
    name = request.run_name or _run_name(data.benchmark, settings, data.facts, request)
    out = absolute(request.out)
    folder = f"{out}/{name}"
    uri = tracking_uri(request.tracking_uri, out)
    connect(request.address)
    fits_wanted = len(data.census.splits) * len(request.directions)
    plan = plan_fits(fits_wanted, node_resources(), request.workers)
    if request.per_worker_batch:
        settings = _scaled(settings, plan.workers)
    with ThreadPoolExecutor(1) as side:
        # MLflow migrates its database for some seconds: meanwhile the trainings start.
        artifacts = None if "://" in out else f"{out}/mlartifacts"
        tracker: Future[Tracker] = side.submit(Tracker, uri, request.experiment, artifacts)
        refs = feature_refs(request, data)
        for note in data.notes:
            console.print(note, highlight=False, soft_wrap=True)
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


def _scaled(settings: "TrainSettings", workers: int) -> "TrainSettings":
    from dataclasses import replace

    return replace(settings, batch=settings.batch * workers)


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
