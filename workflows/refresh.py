"""Bring a model up to date with its archive: extract what is new, retrain, score, register, promote if better.

    pthnet refresh s3://videos --features s3://features --train-list train.txt --test-list test.txt --classes Happy,Sad
    \\
        --backbone giant --weights s3://models/vit_g.pth --out s3://runs

Nothing new since the last model is success, so it can run on a schedule: pthnet schedule --cron @daily -- refresh ...
"""

import hashlib
import json as json_module
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from workflows.train import TrainRequest

if TYPE_CHECKING:
    from workflows.train import TrainResult

# What a run is told without changing what comes out of it.
_MEANS = ("address", "out", "tracking_uri", "workers", "max_failures", "figures")


def refresh(
    sources: list[str],
    /,
    *,
    request: Annotated[TrainRequest, Parameter(name="*")],
    root: str | None = None,
    backbone: str = "small",
    weights: str | None = None,
    random_weights: int | None = None,
    extract_precision: Literal["auto", "fp32", "bf16"] = "auto",
    tail: Literal["cover", "drop"] = "cover",
    normalize: Literal["none", "imagenet"] = "none",
    max_attempts: int = 1,
    max_failure_rate: float = 0.5,
    max_cpus: float | None = None,
    max_gpus: float | None = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Extract what is new; when the features or the lists changed since the last model, retrain and promote if better.

    Parameters
    ----------
    sources
        As for `extract`.
    root
        Directory or prefix that clip names are relative to.
    backbone
        Of the extractor, as for `extract`.
    weights
        Its checkpoint.
    random_weights
        Instead of weights: draw them from this seed.
    extract_precision
        What `extract` calls precision; --precision is the training's.
    tail
        As for `extract`.
    normalize
        As for `extract`.
    max_attempts
        Runs in which a failing clip is tried before it stays in quarantine.
    max_failure_rate
        Above this share of failed clips nothing is trained.
    max_cpus
        Most cores of the cluster that the extraction may take.
    max_gpus
        Most GPUs of the cluster that the extraction may take.
    force
        Train even when nothing changed.
    json
        Print one JSON object: the extraction, whether and why it trained, what was registered.

    Returns
    -------
    int
        0 when the model is up to date, 1 when too many clips failed.
    """
    from rich.console import Console

    from tasks.resolve import resolve_extractor
    from workflows import extract
    from workflows.extract_report import print_report
    from workflows.train import run_training
    from workflows.train_table import show

    lists = _lists(request)  # before hours of extraction: a list that is not there is found now
    extractor = resolve_extractor(
        backbone,
        weights=weights,
        random_weights=random_weights,
        precision=extract_precision,
        tail=tail,
        normalize=normalize,
        device=extract.forward_device("auto", max_gpus, request.address),
    )
    settings = extract.Settings(max_attempts=max_attempts, max_cpus=max_cpus, max_gpus=max_gpus)
    clips = extract.listed(sources, root)
    report = extract.run(
        clips, request.features, extractor, weights=weights, settings=settings, address=request.address
    )
    if not json:
        print_report(report, as_json=False)
    if report.failure_rate > max_failure_rate:
        why = f"{report.failure_rate:.0%} of the clips tried failed, more than {max_failure_rate:.0%}: not trained"
        return _end(1, why, asdict(report), None, json)

    request = replace(request, extractor=request.extractor or extractor.id)
    wanted = _fingerprint(request, report.version, lists)
    known = _last(request.out)
    if known.get("trained_on") == wanted and not force:
        why = f"the features (version {report.version}), lists and settings are those of {known['model']}: not trained"
        return _end(0, why, asdict(report), None, json)

    result = run_training(request, Console(stderr=True))
    if not json:
        show(result, Console(file=sys.stdout))
    _remember(request.out, wanted, result)
    why = "; ".join(f"{model['name']} {model['version']}: {model['reason']}" for model in result.registered)
    return _end(0, why or "trained; nothing was to be registered", asdict(report), asdict(result), json)


def _lists(request: TrainRequest) -> list[Any]:
    """What tells one state of the lists from another."""
    from storage.errors import StorageError
    from storage.files import read_bytes, walk

    found: list[Any] = sorted(walk(request.lists)) if request.lists else []
    for uri in filter(None, (request.train_list, request.test_list)):
        try:
            found.append(hashlib.sha256(read_bytes(uri)).hexdigest())
        except FileNotFoundError:
            raise StorageError(f"list {uri} is not there; check --train-list and --test-list") from None
    return found


def _fingerprint(request: TrainRequest, version: int | None, lists: list[Any]) -> str:
    """Digest of everything a training depends on: the settings, the table's version, the lists."""
    facts: dict[str, Any] = {key: value for key, value in asdict(request).items() if key not in _MEANS}
    return hashlib.sha256(json_module.dumps([facts, version, lists], sort_keys=True, default=str).encode()).hexdigest()


def _last(out: str) -> dict[str, Any]:
    """What the last refresh trained; empty before the first. Written after training, so that a failed one is redone."""
    from storage.files import join, read_bytes

    try:
        return dict(json_module.loads(read_bytes(join(out, "refresh.json"))))
    except FileNotFoundError:
        return {}


def _remember(out: str, trained_on: str, result: "TrainResult") -> None:
    from storage.files import join, write_atomic

    models = ", ".join(f"{model['name']} {model['version']}" for model in result.registered)
    kept = {"trained_on": trained_on, "model": models or result.run_name, "run": result.run_name}
    write_atomic(join(out, "refresh.json"), json_module.dumps(kept, indent=1).encode())


def _end(code: int, why: str, extraction: dict[str, Any], training: dict[str, Any] | None, as_json: bool) -> int:
    """Say how it ended, in one line for people and one object for machines."""
    print(why, file=sys.stderr)
    if as_json:
        summary = {"exit_code": code, "why": why, "trained": training is not None}
        print(json_module.dumps({**summary, "extraction": extraction, "training": training}, default=str))
    return code
