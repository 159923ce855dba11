"""Predict the expression in videos: `pthnet predict "clips/*.mp4" --model models:/NAME@champion --out predictions`.

list -> extract what has no features yet -> score clip by clip and window by window -> tables, pictures, page. Run
again, it extracts and draws only what is missing. Without anything to extract Ray is not started.
"""

import json as json_module
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from pthnet.extractor import Extractor
    from tasks.bundle import Bundle
    from tasks.report_page import PageClip
    from workflows.extract import Settings
    from workflows.predict_pictures import Wanted


@dataclass(frozen=True, kw_only=True)
class PredictionResult:
    """What a prediction left; also predictions.json beside the tables.

    Attributes
    ----------
    out : str
        The folder.
    model, model_version : str
        As it was asked for, and the registered version behind an alias ("" for a folder).
    extractor, features : str
        Whose features were read, and the table they lie in.
    classes : list of str
    clips, windows : int
        Rows of clips.parquet and windows.parquet.
    extracted : int
        Clips whose features were missing and are there now.
    quarantined : dict of kind to int
        Clips without a prediction, see quarantined.csv.
    labels : dict of class to int
        Clips by label.
    report : str
        The page, "" when none was asked for.
    seconds : dict
        model, list, extract, score, pictures.
    """

    out: str
    model: str
    model_version: str
    extractor: str
    features: str
    classes: list[str]
    clips: int
    windows: int
    extracted: int
    quarantined: dict[str, int]
    labels: dict[str, int]
    report: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failure_rate(self) -> float:
        """Clips without a prediction among all."""
        failed = sum(self.quarantined.values())
        return failed / (failed + self.clips) if failed else 0.0

    def read(self, table: Literal["clips", "windows", "quarantined"] = "clips") -> "pa.Table":
        """One of the tables."""
        import pyarrow.parquet as pq

        return pq.read_table(Path(self.out) / f"{table}.parquet")


def predict(
    sources: list[str],
    /,
    *,
    model: str,
    out: Path,
    features: str | None = None,
    root: str | None = None,
    tracking_uri: str | None = None,
    weights: str | None = None,
    context: int = 5,
    evidence: bool = True,
    timeline: bool = True,
    overlay: bool = True,
    report: bool = True,
    max_pictures: int = 500,
    max_failure_rate: float = 0.5,
    max_attempts: int = 1,
    retry_quarantined: bool = False,
    decode_timeout: float = 120.0,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    max_cpus: float | None = None,
    max_gpus: float | None = None,
    address: str | None = None,
    json: bool = False,
) -> int:
    """Predict the expression in videos, clip by clip and window by window.

    Parameters
    ----------
    sources
        Video files, globs, directories, folders of frames, s3:// prefixes, or lists (.txt, .csv, .parquet).
    model
        models:/NAME@champion, models:/NAME/VERSION, or the folder of a trained model.
    out
        Receives clips, windows and quarantined (.parquet and .csv), predictions.json, report.html and the pictures.
    features
        Feature table to read and to add to; by default one in OUT.
    root
        Directory or prefix that clip names are relative to.
    tracking_uri
        MLflow that knows the model; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    weights
        The backbone's weights, when they are not where the model remembers them.
    context
        Windows judged together around each window; odd.
    evidence
        Also compute what every window contributed to its clip's label.
    timeline
        Draw a picture of every clip.
    overlay
        Make a video of every clip with the label drawn in.
    report
        Write report.html, a page to browse the predictions with.
    max_pictures
        Clips that get pictures and videos, the first by name.
    max_failure_rate
        Exit code 1 when more than this share of the clips got no prediction.
    max_attempts
        Runs in which a failing clip is tried before it stays in quarantine.
    retry_quarantined
        Try quarantined clips once more.
    decode_timeout
        Seconds one clip (or segment of a long one) may take to decode.
    device
        Where backbone and model run.
    max_cpus
        Most cores of the cluster that extraction may take.
    max_gpus
        Most GPUs of the cluster that extraction may take.
    address
        Ray cluster; by default RAY_ADDRESS, else this machine. Used only if features are missing.
    json
        Print the result as one JSON object.
    """
    from workflows.extract import Settings
    from workflows.predict_pictures import Wanted
    from workflows.predict_report import print_result

    settings = Settings(
        max_attempts=max_attempts,
        retry_quarantined=retry_quarantined,
        decode_timeout_s=decode_timeout,
        device=device,
        max_cpus=max_cpus,
        max_gpus=max_gpus,
    )
    result = run_prediction(
        sources,
        model=model,
        out=out,
        features=features,
        root=root,
        tracking_uri=tracking_uri,
        weights=weights,
        context=context,
        evidence=evidence,
        pictures=Wanted(timeline=timeline, overlay=overlay, report=report, most=max_pictures),
        settings=settings,
        address=address,
    )
    if json:
        print(json_module.dumps(asdict(result)))
    else:
        print_result(result)
    return 1 if result.failure_rate > max_failure_rate else 0


def run_prediction(
    sources: Sequence[str],
    *,
    model: "str | Bundle",
    out: Path,
    features: str | None = None,
    root: str | None = None,
    tracking_uri: str | None = None,
    weights: str | None = None,
    context: int = 5,
    evidence: bool = True,
    pictures: "Wanted | None" = None,
    settings: "Settings | None" = None,
    address: str | None = None,
) -> PredictionResult:
    """Predict and write; parameters as in `predict`, but `model` may be a loaded one, and `pictures` default to all.

    Raises
    ------
    ModelError, StorageError, ClusterError
        For what a user can put right: no such model or source, weights that are not the model's.
    """
    from dataclasses import replace

    from pthnet.errors import ModelError
    from tasks.model_source import digest_of, load_model
    from workflows import extract
    from workflows.predict_pictures import Wanted, illustrate_clips, write_report
    from workflows.predict_score import counted, divided, score_known

    settings = settings or extract.Settings()
    wanted = Wanted() if pictures is None else pictures
    clock = _Clock()
    if str(out).startswith("s3:"):
        raise ModelError(f"--out is a local folder, not {out}: pages and videos are looked at there")
    out = Path(out)
    bundle = load_model(model, tracking_uri) if isinstance(model, str) else model
    table = features or str(out / "features")
    clock.lap("model")
    clips = extract.listed(sources, root)
    clock.lap("list")
    out.mkdir(parents=True, exist_ok=True)
    extracted = _extract_missing(clips, table, bundle, weights, settings, address)
    clock.lap("extract")
    known, refused = divided(clips, table, bundle.extractor_id)
    shown: list[tuple[PageClip, str]] | None = [] if wanted else None
    counts = score_known(known, table, bundle, out, head_device(settings.device), context, evidence, shown)
    _write_refused(refused, out)
    clock.lap("score")
    result = PredictionResult(
        out=str(out),
        model=model if isinstance(model, str) else str(model.folder or ""),
        model_version=str(bundle.facts.get("version", "")),
        extractor=bundle.extractor_id,
        features=table,
        classes=list(bundle.classes),
        extracted=extracted,
        quarantined=counted(refused["kind"].to_pylist()),
        seconds=clock.seconds,
        **counts,
    )
    if shown is not None:
        drawn = illustrate_clips(shown, out, wanted, digest_of(bundle, context))
        if wanted.report:
            result = replace(result, report=str(write_report(drawn, refused, result, bundle)))
        clock.lap("pictures")
    _write_json(out / "predictions.json", asdict(result))
    return result


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.since = round(now - self.since, 3), now


def head_device(device: str) -> str:
    """Where the networks run, which are small: on this machine's GPU if it has one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _extract_missing(
    clips: "pa.Table", table: str, bundle: "Bundle", weights: str | None, settings: "Settings", address: str | None
) -> int:
    """Extract the clips that lack features; returns how many were done."""
    from workflows import extract
    from workflows.predict_score import complete_clips

    if not bundle.extractor and complete_clips(clips, table, bundle.extractor_id).num_rows == clips.num_rows:
        return 0
    from tasks.model_source import backbone_weights, extractor_of

    extractor = extractor_of(bundle)
    if not extract.planned(clips, table, extractor, settings).todo.num_rows:
        return 0
    found = backbone_weights(bundle, extractor, weights)
    _check_weights(extractor, found)
    return extract.run(clips, table, extractor, weights=found, settings=settings, address=address).done


def _check_weights(extractor: "Extractor", weights: str | None) -> None:
    """Refuse weights that are not the model's before a cluster is set in motion."""
    from pthnet.backbone import build_backbone
    from storage.copies import local_copy

    if weights is None:
        build_backbone(extractor)
        return
    with local_copy(weights) as path:
        build_backbone(extractor, weights=path)


def _write_refused(refused: "pa.Table", out: Path) -> None:
    from tasks.predictions import QUARANTINED, PredictionFiles

    with PredictionFiles(out, "quarantined", QUARANTINED) as files:
        files.add(refused)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    from storage.files import write_atomic

    write_atomic(str(path), (json_module.dumps(value, indent=2) + "\n").encode())
