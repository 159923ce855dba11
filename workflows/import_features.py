"""The authors' published features into the table.

pthnet import-features get_features/ --dataset DFEW --features features/
"""

import json as json_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from pthnet.extractor import Extractor
    from storage.npy import Imported
    from tasks.shard import Written

DIM = 1408  # of the published features
SHARD_CLIPS = 4096


def import_features(
    directory: str,
    /,
    *,
    dataset: str,
    features: str,
    face: bool = False,
    lists: list[str] | None = None,
    tolerance: float = 0.0,
    max_attempts: int = 1,
    retry_quarantined: bool = False,
    max_failure_rate: float = 0.5,
    json: bool = False,
) -> int:
    """Bring a published tree of .npy features into a feature table, all strides and directions; again, what is new.

    The tree is DIRECTORY/DATASET/th14_vit_g_16_{4,8,16}[_face][_rv]/CLIP.npy. Keep each data set in a table of its own:
    the names of its clips are theirs.

    Parameters
    ----------
    directory
        The folder get_features, local or s3://.
    dataset
        The folder below it.
    features
        The feature table, local or s3://.
    face
        The features of the face crops instead of the whole frames.
    lists
        Annotation lists whose counts the files are checked against. Lists of frames also tell the number of frames.
    tolerance
        Largest difference by which a window of stride 8 or 16 may share the vector of stride 4. 0 keeps every number.
    max_attempts
        Runs in which a failing clip is tried before it stays in quarantine.
    retry_quarantined
        Try quarantined clips once more.
    max_failure_rate
        Exit code 1 when more than this share of the clips tried failed.
    json
        Print one JSON object instead of the summary.
    """
    from storage.lists import read_list

    report = run_import(
        directory,
        dataset,
        features,
        face=face,
        lists={path: read_list(path) for path in lists or ()},
        tolerance=tolerance,
        max_attempts=max_attempts,
        retry_quarantined=retry_quarantined,
    )
    failed = sum(report["failed"].values())
    if json:
        print(json_module.dumps(report))
    else:
        planned = ", ".join(f"{count} {name}" for name, count in report["planned"].items() if count) or "no clips"
        print(f"{features} by {report['extractor']}: {report['done']} clips imported, {failed} quarantined; {planned}")
        for kind, count in sorted(report["failed"].items()):
            print(f"  {count} {kind}")
        if failed:
            print(f"what failed and why: pthnet status {features}")
    return 1 if failed and failed / (failed + report["done"]) > max_failure_rate else 0


def run_import(
    directory: str,
    dataset: str,
    features: str,
    *,
    face: bool = False,
    lists: "dict[str, pa.Table] | None" = None,
    tolerance: float = 0.0,
    max_attempts: int = 1,
    retry_quarantined: bool = False,
) -> dict[str, Any]:
    """List, plan, read, write and commit; returns the run's summary, which is kept beside the table.

    Raises
    ------
    StorageError
        When there is no such tree, or another import of it is going on.
    """
    import time

    from storage import quarantine
    from storage.commits import committed
    from storage.features import FeatureTable
    from storage.npy import list_published, read_published
    from storage.plan import plan
    from storage.runs import new_run_id, write_run
    from tasks.commit import Committer

    started = time.perf_counter()
    clips = list_published(directory, dataset, face=face)
    extractor = published_extractor(_dim(clips, face), face=face)
    application = f"pthnet/{extractor.id}"
    table, run_id, base = FeatureTable(features), new_run_id(), committed(features, application)
    todo = plan(
        clips,
        table.keys(extractor.id, times=True),
        quarantine.read(features, extractor.id),
        extractor.id,
        max_attempts=max_attempts,
        retry_quarantined=retry_quarantined,
    )
    table.put_extractor(extractor.id, extractor.to_json())
    committer = Committer(features, application, base, run_id)
    committer.recall(todo, extractor.id)
    parts = read_published(
        todo.todo, extractor.id, face=face, lists=lists, tolerance=tolerance, run_id=run_id, batch=SHARD_CLIPS
    )
    for part in parts:
        committer.add(_written(part, features, extractor))
        committer.commit()
    totals = committer.totals
    report = {
        "workflow": "import-features",
        "features": features,
        "extractor": extractor.id,
        "clips": clips.num_rows,
        "planned": todo.counts,
        "done": totals.clips,
        "failed": dict(totals.failed),
        "windows": totals.windows,
        "version": table.version(),
        "wall_s": time.perf_counter() - started,
    }
    write_run(features, run_id, report)
    return report


def _written(part: "Imported", features: str, extractor: "Extractor") -> "Written":
    import pyarrow.compute as pc

    from storage.columns import DIRECTIONS
    from storage.shards import write_shard
    from tasks.shard import Written

    rows = part.rows
    windows = sum(
        pc.sum(pc.list_value_length(rows[direction].combine_chunks().field("starts"))).as_py() or 0
        for direction in DIRECTIONS
        if rows.num_rows
    )
    return Written(
        shard=write_shard(rows, features, extractor.id) if rows.num_rows else None,
        quarantine=part.problems,
        clips=rows.num_rows,
        segments=rows.num_rows,
        windows=windows,
    )


def published_extractor(dim: int = DIM, *, face: bool = False) -> "Extractor":
    """What the published features are a fact about, as far as their authors tell: ViT-g, 224 pixels, the cover rule."""
    import hashlib

    from pthnet.extractor import Extractor

    name = "published-vit-g-face" if face else "published-vit-g"
    # Their weights come with no fingerprint, so the name stands for them.
    weights = hashlib.sha256(f"{name}, {dim} numbers a window".encode()).hexdigest()
    return Extractor(backbone=name, config={"image_size": 224, "dim": dim}, weights=weights, precision="fp32")


def _dim(clips: "pa.Table", face: bool, tries: int = 32) -> int:
    """Length of the vectors, by the first clip that can be read."""
    from storage.npy import read_published

    for part in read_published(clips.slice(0, tries), "", face=face, batch=1):
        for row in part.rows.to_pylist():
            windows = row["forward"] or row["reverse"]
            return len(windows["features"]) // len(windows["starts"])
    return DIM
