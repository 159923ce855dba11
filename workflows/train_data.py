"""What a training reads, and all it refuses before anything starts: lists, labels, extractor, missing clips."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pthnet.benchmarks import Benchmark
    from tasks.splits import Census, FoldLists, ListedCounts
    from workflows.train_request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """The checked lists of a training.

    Attributes
    ----------
    benchmark : Benchmark
    folds : list of FoldLists
        After missing clips were left out.
    census : Census
    extractor : str
    spec : dict
        The extractor's specification, {} when none is recorded.
    weights : str
        Where the extractor's weights were read, "" for random ones or when no run says.
    dim : int
    version : int
        Of the feature table; every reader uses it.
    facts : dict
        What identifies the data: table, version, extractor, digests of the lists, validation share.
    notes : list of str
        What the user must know.
    """

    benchmark: "Benchmark"
    folds: list["FoldLists"]
    census: "Census"
    extractor: str
    spec: dict[str, Any]
    weights: str
    dim: int
    version: int
    facts: dict[str, Any]
    notes: list[str]
    listed: list["ListedCounts"]


def read_data(request: "TrainRequest") -> TrainData:
    """Read the lists and the table's keys.

    Raises
    ------
    ModelError, StorageError
        For an unknown benchmark, unreadable lists, labels outside the classes, an absent extractor, missing clips.
    """
    import json

    from pthnet.benchmarks import overlap
    from pthnet.errors import ModelError
    from storage.features import FeatureTable
    from tasks.feature_set import choose_extractor, present, refuse_missing
    from tasks.splits import census, overlap_line

    benchmark = benchmark_of(request)
    folds, digests, listed = _read_folds(request, benchmark)
    table = FeatureTable(request.features)
    version = table.version()
    keys = table.keys(version=version) if version >= 0 else table.keys()
    extractor = choose_extractor(sorted(set(keys["extractor"].to_pylist())), request.extractor, request.features)
    recorded = table.extractors().get(extractor)
    spec = json.loads(recorded) if recorded else {}
    dim = int(spec.get("config", {}).get("dim", 0)) or _dim_in_table(
        table, keys, extractor, version, request.directions[0]
    )
    if request.backbone_dim not in (None, dim):
        raise ModelError(
            f"extractor {extractor} has {dim} numbers a window, --backbone-dim says {request.backbone_dim}; "
            "drop the option or name another --extractor"
        )

    notes = [
        line
        for fold in folds
        if (line := overlap_line(fold.name, overlap(benchmark, _text(fold.train_ids), _text(fold.test_ids))))
    ]
    held = present(keys, extractor)
    import numpy as np

    wanted = np.unique(np.concatenate([part for fold in folds for part in (fold.train_ids, fold.test_ids)]))
    mask = refuse_missing(wanted, held, request.features, request.allow_missing)
    if not mask.all():
        missing = int((~mask).sum())
        shown = ", ".join(_text(wanted[~mask][:5])) + (", ..." if missing > 5 else "")
        notes.append(f"left out {missing} of {len(wanted)} listed clips without features: {shown}")
        folds = [fold.keep(held) for fold in folds]
    if benchmark.note:
        notes.append(f"{benchmark.name}: {benchmark.note}")
    chosen_there = request.selection == "validation" or request.mu == "validation"
    share = request.validation if request.validation is not None else (0.1 if chosen_there else 0.0)
    if chosen_there and not share:
        raise ModelError(
            "--selection validation and --mu validation need held-out clips; set --validation to a share such as 0.1"
        )
    subject_of = benchmark.subject if benchmark.subject_pattern else None
    counted = census(folds, validation=share, seed=request.seed, subject_of=subject_of)
    facts = {
        "features": request.features,
        "table_version": version,
        "extractor": extractor,
        "lists": digests,
        "validation": share,
        "clips": len(counted.clip_ids),
    }
    return TrainData(
        benchmark=benchmark,
        folds=folds,
        census=counted,
        extractor=extractor,
        spec=spec,
        weights=weights_of(request.features, extractor),
        dim=dim,
        version=version,
        facts=facts,
        notes=notes,
        listed=listed,
    )


def weights_of(features: str, extractor: str, last: int = 200) -> str:
    """Where the last extractions by this extractor read the backbone's weights; "" when none says."""
    from storage.runs import read_runs

    told = [run.get("weights") for run in read_runs(features, last) if run.get("extractor") == extractor]
    return next((str(weights) for weights in reversed(told) if weights), "")


def benchmark_of(request: "TrainRequest") -> "Benchmark":
    """The benchmark named, the YAML file's, or one made of two lists."""
    from pthnet.benchmarks import Benchmark, Fold, find_benchmark, load_benchmark_yaml
    from pthnet.errors import ModelError

    if request.benchmark:
        if request.train_list or request.test_list:
            raise ModelError("give either --benchmark with --lists, or --train-list with --test-list")
        is_file = request.benchmark.endswith((".yaml", ".yml"))
        return load_benchmark_yaml(request.benchmark) if is_file else find_benchmark(request.benchmark)
    if not request.train_list or not request.test_list:
        raise ModelError(
            "name the clips: --benchmark NAME --lists FOLDER, or --train-list FILE --test-list FILE --classes A,B,..."
        )
    classes = tuple(part.strip() for text in request.classes for part in text.split(",") if part.strip())
    if len(classes) < 2:
        raise ModelError("two lists need the class names in the order of their labels: --classes Happy,Sad,Neutral")
    return Benchmark(name="own", classes=classes, folds=(Fold(1, request.train_list, request.test_list),))


def _read_folds(
    request: "TrainRequest", benchmark: "Benchmark"
) -> tuple[list["FoldLists"], dict[str, str], list["ListedCounts"]]:
    import numpy as np

    from pthnet.errors import ModelError
    from pthnet.windows import STRIDES
    from storage.files import join
    from storage.lists import check_labels, list_digest, read_list
    from tasks.splits import FoldLists, ListedCounts

    if request.benchmark and not request.lists:
        raise ModelError(
            f"{benchmark.name} needs its list files: --lists FOLDER, which holds {benchmark.folds[0].train}, "
            f"{benchmark.folds[0].test} and so on"
        )
    folds, digests, listed = [], {}, []
    for number in request.fold or tuple(fold.number for fold in benchmark.folds):
        fold = benchmark.fold(number)
        parts = []
        for name in (fold.train, fold.test):
            path = join(request.lists, name) if request.benchmark and request.lists else name
            table = read_list(path, strip=request.strip, class_names=benchmark.classes)
            check_labels(table, benchmark.num_classes, benchmark.classes, path)
            digests[name.rsplit("/", 1)[-1]] = list_digest(table)
            described = table.schema.metadata or {}
            unit, stride = described.get(b"unit", b"").decode(), described.get(b"stride", b"").decode()
            levels = [level for level, wanted in STRIDES.items() if unit == "windows" and stride == str(wanted)]
            if unit == "frames" or levels:
                ids = np.asarray(table["clip_id"].to_pylist(), dtype=str)
                counts = table["count"].fill_null(0).to_numpy().astype(np.int64)
                listed.append(ListedCounts(path=path, unit=(*levels, unit)[0], clip_ids=ids, counts=counts))
            parts += [np.asarray(table["clip_id"].to_pylist(), dtype=str), table["label"].to_numpy().astype(np.int64)]
        folds.append(
            FoldLists(
                name=str(number), train_ids=parts[0], train_labels=parts[1], test_ids=parts[2], test_labels=parts[3]
            )
        )
    return folds, digests, listed


def feature_refs(request: "TrainRequest", data: TrainData) -> dict[str, Any]:
    """Object references of the FeatureSets, one a direction, each read once by a Ray task.

    Adds to the notes of `data` where a list's counts are not the table's.
    """
    import ray

    from tasks.splits import count_line

    read = ray.remote(num_cpus=1, num_returns=2, max_retries=2)(_load)
    sets: dict[str, Any] = {}
    sizes = []
    for direction in request.directions:
        sets[direction], size = read.remote(
            request.features,
            data.census.clip_ids,
            data.census.labels,
            direction=direction,
            extractor=data.extractor,
            version=data.version,
        )
        sizes.append(size)
    try:
        counts = ray.get(sizes)[0]  # only the small second value: the features stay where they were read
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    lines = (count_line(listed, data.census.clip_ids, counts[listed.unit]) for listed in data.listed)
    data.notes.extend(line for line in lines if line)
    return sets


def _load(*arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    from tasks.feature_set import load_feature_set

    loaded = load_feature_set(*arguments, **options)
    return loaded, loaded.counts()


def _dim_in_table(table: Any, keys: Any, extractor: str, version: int, direction: str) -> int:
    """Feature size of an extractor whose specification is not recorded, from one of its clips."""
    from tasks.feature_set import present

    first = present(keys, extractor)[:1]
    return (
        int(table.load([str(clip) for clip in first], direction, extractor, version=version).dim) if len(first) else 0
    )


def _text(clip_ids: Any) -> list[str]:
    return [str(clip) for clip in clip_ids]
