"""What a feature table holds, lacks and quarantines: `pthnet status features/`."""

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

RETRY = "--retry-quarantined"
# What a person can do about each kind of failure; a clip whose bytes change is tried again by itself.
REMEDIES = {
    "decode_error": "damaged, or no video: replace the file",
    "decode_crash": "the decoder dies of it: re-encode the file",
    "decode_timeout": f"give it longer: {RETRY} --decode-timeout SECONDS",
    "no_video_stream": "holds no picture: take it off the sources",
    "empty": "no bytes: copy the file again",
    "missing": f"was gone when it was read; if it is back: {RETRY}",
    "changed": "was written to while it was read: the next run takes what is there now",
    "frame_count_mismatch": "cut short, or its header is wrong: copy it again or re-encode it",
    "out_of_memory": f"a smaller --micro-batch, or a machine with more memory, then {RETRY}",
    "access_denied": f"give this user access to it, then {RETRY}",
    "unreachable": f"its storage did not answer: {RETRY}",
    "not_finite": "the backbone overflows on it: --precision fp32",
    "unreadable": "no plain .npy file: copy it again",
    "not_features": "not a [windows, dim] array of floats: export it again",
    "missing_level": "one of its three strides is missing: copy it again",
    "counts_inconsistent": "its window counts do not belong together: export it again",
    "count_mismatch": "not the count of the list: check both",
    "dim_mismatch": "vectors of another backbone: keep them in another tree",
}


def status(
    features: str,
    /,
    *,
    sources: list[str] | None = None,
    root: str | None = None,
    examples: int = 3,
    runs: int = 5,
    json: bool = False,
) -> int:
    """Show what a feature table holds: clips done, stale, in quarantine and why, bytes, versions, the last runs.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    sources
        What it was extracted from: clips that changed since are counted as stale.
    root
        Directory or prefix that clip names are relative to, as in pthnet extract.
    examples
        Clips shown of each kind of failure.
    runs
        Last runs shown.
    json
        Print one JSON object instead of the tables.
    """
    facts = gather(features, sources=sources, root=root, examples=examples, runs=runs)
    if json:
        print(json_module.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)
    return 0


def gather(
    features: str,
    *,
    sources: list[str] | None = None,
    root: str | None = None,
    examples: int = 3,
    runs: int = 5,
) -> dict[str, Any]:
    """The facts as plain JSON: features, version, versions, extractors by id, runs (oldest first).

    Raises
    ------
    StorageError
        When there is no feature table, or a source cannot be listed.
    """
    from storage import maintenance, quarantine
    from storage.errors import StorageError
    from storage.features import FeatureTable
    from storage.runs import read_runs
    from storage.sources import list_clips

    table = FeatureTable(features)
    if not table.exists():
        raise StorageError(f"{features} holds no feature table; make one with pthnet extract or pthnet import-features")
    found = maintenance.status(features, list_clips(sources, root=root) if sources else None)
    standing = quarantine.standing(quarantine.read(features), table.keys(times=True)).to_pylist()
    specs = table.extractors()
    extractors = {}
    for name, held in found.extractors.items():
        mine = [row for row in standing if row["extractor"] == name]
        kinds = {
            kind: {
                "clips": count,
                "remedy": REMEDIES.get(kind, ""),
                "examples": [
                    {key: row[key] for key in ("clip_id", "uri", "detail", "attempt")}
                    for row in [row for row in mine if row["kind"] == kind][:examples]
                ],
            }
            for kind, count in sorted(held.quarantined.items(), key=lambda item: (-item[1], item[0]))
        }
        spec = json_module.loads(specs[name]) if name in specs else None
        extractors[name] = {**asdict(held), "quarantined": kinds, "spec": spec}
    return {
        "features": features,
        "version": found.version,
        "versions": found.versions,
        "extractors": extractors,
        "runs": read_runs(features, runs),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    total = sum(held["bytes"] for held in facts["extractors"].values())
    console.print(
        f"{facts['features']}: version {facts['version']}, {facts['versions']} versions readable, {_bytes(total)}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(title="extractors", title_justify="left")
    table.add_column("extractor", overflow="fold")
    for name in ("done", "partial", "stale", "quarantined", "files", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, held in facts["extractors"].items():
        failed = sum(kind["clips"] for kind in held["quarantined"].values())
        counts = [held["done"], held["partial"], held["stale"], failed, held["files"]]
        table.add_row(name, *map(str, counts), _bytes(held["bytes"]))
    console.print(table)
    for name, held in facts["extractors"].items():
        if held["quarantined"]:
            _show_quarantine(console, name, held["quarantined"])
    if facts["runs"]:
        _show_runs(console, facts["runs"])


def _show_quarantine(console: "Console", extractor: str, kinds: dict[str, Any]) -> None:
    console.print(f"in quarantine by {extractor}", markup=False)
    for kind, found in kinds.items():
        console.print(f"  {found['clips']} {kind}: {found['remedy']}".rstrip(": "), markup=False, soft_wrap=True)
        for row in found["examples"]:
            tries = f", tried {row['attempt']} times" if row["attempt"] > 1 else ""
            console.print(f"    {row['clip_id']}: {row['detail']}{tries}", markup=False, soft_wrap=True)


def _show_runs(console: "Console", runs: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="last runs", title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in ("clips", "done", "failed", "windows", "version", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        failed = sum((run.get("failed") or {}).values())
        values = [run.get("clips", ""), run.get("done", ""), failed, run.get("windows", ""), run.get("version", "")]
        table.add_row(run["run_id"], *map(str, values), f"{run.get('wall_s', 0.0):.1f}")
    console.print(table)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
