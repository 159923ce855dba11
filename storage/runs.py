"""Summaries of runs: one JSON file each, beside the table."""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from storage import files


def new_run_id() -> str:
    """A run id that sorts by time: 20260131T235959-1a2b3c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_run(uri: str, run_id: str, summary: dict[str, Any]) -> str:
    """Keep a run's summary as <uri>/runs/<run_id>.json; returns its URI."""
    target = files.join(uri, "runs", f"{run_id}.json")
    files.write_atomic(target, json.dumps({"run_id": run_id, **summary}, indent=2, ensure_ascii=False).encode())
    return target


def read_runs(uri: str, last: int | None = None) -> list[dict[str, Any]]:
    """The summaries of the runs, oldest first; only the last few when asked."""
    folder = files.join(uri, "runs")
    with files.explained(uri):
        fs, root = files.filesystem(folder)
        found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    names = sorted(info.base_name for info in found if info.base_name.endswith(".json"))
    if last is not None:
        names = names[-last:] if last > 0 else []
    return [json.loads(files.read_bytes(files.join(folder, name))) for name in names]
