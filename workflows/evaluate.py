"""Score a fused model on a list of clips.

pthnet evaluate --model models:/NAME@champion --features features/ --list test.txt
"""

import json as json_module
import sys
from typing import Any


def evaluate(
    *,
    model: str,
    features: str,
    list: str,
    strip: str = "",
    split: str | None = None,
    mu: float | None = None,
    allow_missing: bool = False,
    tracking_uri: str | None = None,
    out: str = "runs",
    json: bool = False,
) -> int:
    """Score a model on a list of clips whose features are in a table.

    Parameters
    ----------
    model
        models:/NAME@champion, models:/NAME/3, or the folder of a model that training left.
    features
        The feature table, local or s3://; it must hold the model's extractor.
    list
        Clips and labels.
    strip
        Folder to take off the front of the list's paths.
    split
        Only the rows of this split (CSV, Parquet).
    mu
        Weight of the forward logits; the model's own by default.
    allow_missing
        Leave out listed clips without features instead of refusing.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else the SQLite file in `out`.
    out
        Where training kept its runs.
    json
        Print one JSON object instead of the table.
    """
    from rich.console import Console
    from rich.table import Table

    from tasks.report import percent

    found = score_model(
        model,
        features,
        list,
        strip=strip,
        split=split,
        mu=mu,
        allow_missing=allow_missing,
        tracking_uri=tracking_uri,
        out=out,
    )
    if json:
        print(json_module.dumps(found))
        return 0
    table = Table(title=f"{model} on {list}: {found['clips']} clips, per cent")
    for name in ("", "WAR (95 %)", "UAR (95 %)", "weighted F1", "macro F1"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for system, scored in found["systems"].items():
        pooled, interval = scored["pooled"], scored["interval"]
        cells = []
        for metric in ("war", "uar"):
            cells.append(f"{percent(pooled[metric])} ({'–'.join(percent(value, 1) for value in interval[metric])})")
        table.add_row(system, *cells, percent(pooled["weighted_f1"]), percent(pooled["macro_f1"]))
    console = Console(file=sys.stdout)
    console.print(table)
    recalls = found["systems"]["fused"]["recalls"]
    shown = ", ".join(f"{name} {percent(value)}" for name, value in recalls.items() if value is not None)
    console.print(f"recall of the fused model: {shown}", highlight=False, soft_wrap=True)
    if found["left_out"]:
        console.print(f"left out {found['left_out']} listed clips without features", highlight=False)
    return 0


def score_model(
    model: str,
    features: str,
    path: str,
    *,
    strip: str = "",
    split: str | None = None,
    mu: float | None = None,
    allow_missing: bool = False,
    tracking_uri: str | None = None,
    out: str = "runs",
) -> dict[str, Any]:
    """Scores of a model on a list, as plain JSON: model, extractor, mu, clips, left_out, systems.

    Raises
    ------
    ModelError
        For an unknown model, labels outside its classes, or a table without its extractor.
    StorageError
        For an unreadable list or missing clips.
    """
    import numpy as np
    import torch

    from pthnet.errors import ModelError
    from storage.features import FeatureTable
    from storage.lists import check_labels, read_list
    from tasks.evaluate import data_digest
    from tasks.feature_set import load_feature_set, present, refuse_missing
    from tasks.registered import fetch
    from tasks.report import FoldResult, summarize
    from tasks.tracking import tracking_uri as default_uri

    bundle = fetch(default_uri(tracking_uri, out) if model.startswith("models:/") else "", model)
    if mu is not None:
        bundle.mu = mu
    listed = read_list(path, strip=strip, split=split, class_names=bundle.classes)
    check_labels(listed, len(bundle.classes), bundle.classes, path)
    table = FeatureTable(features)
    version = table.version()
    keys = table.keys(version=version) if version >= 0 else table.keys()
    held = sorted(set(keys["extractor"].to_pylist()))
    if bundle.extractor_id not in held:
        raise ModelError(
            f"the model reads features of {bundle.extractor_id}; {features} holds {', '.join(held) or 'none'}. "
            "Extract the clips with the model's backbone and weights"
        )
    ids = np.asarray(listed["clip_id"].to_pylist(), dtype=str)
    mask = refuse_missing(ids, present(keys, bundle.extractor_id), features, allow_missing)
    ids, labels = ids[mask], listed["label"].to_numpy().astype(np.int64)[mask]
    wanted = [str(clip) for clip in ids]
    sets = {
        direction: load_feature_set(
            features, wanted, labels, direction=direction, extractor=bundle.extractor_id, version=version
        )
        for direction in bundle.networks
    }
    logits = bundle.logits(sets, np.arange(len(ids)), "cuda" if torch.cuda.is_available() else "cpu")
    # The floor needs training labels, which a list to evaluate has not: the most frequent class of the list itself.
    result = FoldResult(
        fold="1", clip_ids=ids, target=labels, train_labels=labels, logits=logits, mu=bundle.mu, epochs={}
    )
    summary = summarize([result], bundle.classes)
    return {
        "model": model,
        "extractor": bundle.extractor_id,
        "table_version": version,
        "mu": bundle.mu,
        "clips": len(ids),
        "left_out": int((~mask).sum()),
        "evaluation_data": data_digest(ids, labels),
        "systems": summary["systems"],
    }
