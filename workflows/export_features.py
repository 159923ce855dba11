"""Features in the authors' published layout.

pthnet export-features features/ --dataset DFEW --out get_features/
"""

import json as json_module
from typing import Literal

BATCH = 1024  # clips held at once


def export_features(
    features: str,
    /,
    *,
    dataset: str,
    out: str,
    extractor: str | None = None,
    face: bool = False,
    directions: Literal["both", "forward", "reverse"] = "both",
    version: int | None = None,
    json: bool = False,
) -> int:
    """Write features as OUT/DATASET/th14_vit_g_16_{4,8,16}[_face][_rv]/CLIP.npy, what the published scripts read.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    dataset
        Name of the folder below `out`.
    out
        Folder to write to, local or s3://.
    extractor
        Whose features; needed when the table holds several.
    face
        Name the folders as those of face crops.
    directions
        Which directions of time to write.
    version
        Version of the table; the newest by default.
    json
        Print one JSON object.
    """
    written = run_export(
        features,
        dataset,
        out,
        extractor=extractor,
        face=face,
        directions=("forward", "reverse") if directions == "both" else (directions,),
        version=version,
    )
    if json:
        print(json_module.dumps({"features": features, "out": out, "dataset": dataset, **written}))
    else:
        print(f"{written['files']} files of {written['clips']} clips by {written['extractor']} in {out}/{dataset}")
    return 0


def run_export(
    features: str,
    dataset: str,
    out: str,
    *,
    extractor: str | None = None,
    face: bool = False,
    directions: tuple[str, ...] = ("forward", "reverse"),
    version: int | None = None,
) -> dict[str, int | str]:
    """Export every complete clip; returns extractor, version, clips and files.

    Raises
    ------
    StorageError
        When there are no features, or those of several extractors and none is named.
    """
    from storage.errors import StorageError
    from storage.features import FeatureTable
    from storage.npy import export_published

    table = FeatureTable(features)
    pinned = table.version() if version is None else version
    held = sorted(table.keys(version=pinned)["extractor"].unique().to_pylist()) if table.exists() else []
    if extractor is None and len(held) == 1:
        extractor = held[0]
    if extractor is None or extractor not in held:
        raise StorageError(
            f"{features} holds features of {', '.join(held) or 'no extractor'}; name one of them with --extractor"
            if held
            else f"{features} holds no features; make them with pthnet extract"
        )
    files, clips = 0, set()
    for direction in directions:
        ids = table.complete(direction, extractor, version=pinned)
        clips.update(ids)
        for first in range(0, len(ids), BATCH):
            loaded = table.load(ids[first : first + BATCH], direction, extractor, version=pinned)
            files += export_published(loaded, out, dataset, direction, face=face)
    return {"extractor": extractor, "version": pinned, "clips": len(clips), "files": files}
