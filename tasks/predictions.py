"""What a prediction is written as: clips, windows and quarantined clips, each as Parquet and as CSV.

The files grow chunk by chunk under temporary names and take their own when they are whole.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tasks.score import ClipScores

QUARANTINED = pa.schema([(name, pa.string()) for name in ("clip", "uri", "stage", "kind", "detail")])


def clips_schema(classes: Sequence[str]) -> pa.Schema:
    """One row per clip. agreement: 1 less the total variation between forward and reverse; 1 = equal probabilities."""
    return pa.schema(
        [
            ("clip", pa.string()),
            ("label", pa.string()),
            ("confidence", pa.float32()),
            *((f"p_{name}", pa.float32()) for name in classes),
            ("forward_label", pa.string()),
            ("reverse_label", pa.string()),
            ("agreement", pa.float32()),  # null where the model has one direction
            ("windows", pa.int64()),
            ("num_frames", pa.int64()),
            ("fps", pa.float64()),  # null for folders of frames, as all seconds are
            ("duration_s", pa.float64()),
            ("uri", pa.string()),
        ]
    )


def windows_schema(classes: Sequence[str]) -> pa.Schema:
    """One row per window, see `tasks.score` for what its probabilities and its contribution are."""
    return pa.schema(
        [
            ("clip", pa.string()),
            ("window", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("start_frame", pa.int64()),
            ("end_frame", pa.int64()),  # one past the last
            ("label", pa.string()),
            ("confidence", pa.float32()),
            *((f"p_{name}", pa.float32()) for name in classes),
            ("forward_label", pa.string()),
            ("reverse_label", pa.string()),
            ("agreement", pa.float32()),
            ("contribution", pa.float32()),
            ("used", pa.bool_()),  # filled a slot of the clip's evaluation
        ]
    )


def clip_rows(scores: ClipScores, uris: Sequence[str], classes: Sequence[str]) -> pa.Table:
    """The scored clips in `clips_schema`."""
    fps = _rates(scores.fps)
    return _table(
        clips_schema(classes),
        {
            "clip": scores.clip_ids,
            **_judged(scores.clip, classes),
            "windows": np.diff(scores.offsets),
            "num_frames": scores.num_frames,
            "fps": _nullable(fps),
            "duration_s": _nullable(scores.num_frames / fps),
            "uri": list(uris),
        },
    )


def window_rows(scores: ClipScores, classes: Sequence[str]) -> pa.Table:
    """The windows of the scored clips in `windows_schema`."""
    counts = np.diff(scores.offsets)
    fps = np.repeat(_rates(scores.fps), counts)
    return _table(
        windows_schema(classes),
        {
            "clip": pa.array(scores.clip_ids, pa.string()).take(pa.array(np.repeat(np.arange(len(counts)), counts))),
            "window": np.arange(len(scores.starts)) - np.repeat(scores.offsets[:-1], counts),
            "start_s": _nullable(scores.starts / fps),
            "end_s": _nullable(scores.ends / fps),
            "start_frame": scores.starts,
            "end_frame": scores.ends,
            **_judged(scores.window, classes),
            "contribution": _nullable(scores.contribution),
            "used": scores.used,
        },
    )


def _judged(shares: dict[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    names = pa.array(classes, pa.string())
    fused = shares["fused"]
    columns: dict[str, Any] = {"label": names.take(pa.array(fused.argmax(1))), "confidence": fused.max(1, initial=0)}
    columns |= {f"p_{name}": fused[:, index] for index, name in enumerate(classes)}
    both = "forward" in shares and "reverse" in shares
    for system in ("forward", "reverse"):
        known = system in shares
        columns[f"{system}_label"] = names.take(pa.array(shares[system].argmax(1))) if known else pa.nulls(len(fused))
    apart = np.abs(shares["forward"] - shares["reverse"]).sum(1) / 2 if both else None
    columns["agreement"] = pa.nulls(len(fused)) if apart is None else 1 - apart
    return columns


def _rates(fps: np.ndarray) -> np.ndarray:
    return np.where(fps > 0, fps, np.nan)


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


class PredictionFiles:
    """<name>.parquet and <name>.csv of one table, written in chunks; nothing under these names until all is written.

    Parameters
    ----------
    folder
        Where they lie.
    name
        Of the files, without suffix.
    schema
        Of every chunk.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.rows = 0
        self.parquet, self.csv = folder / f"{name}.parquet", folder / f"{name}.csv"
        self._parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in (self.parquet, self.csv)}
        self._to_parquet = pq.ParquetWriter(self._parts[self.parquet], schema, compression="zstd")
        self._to_csv = pyarrow.csv.CSVWriter(self._parts[self.csv], schema)

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self._to_parquet.write_table(table)
        self._to_csv.write_table(table)
        self.rows += table.num_rows

    def __enter__(self) -> "PredictionFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._to_parquet.close()
        self._to_csv.close()
        for path, part in self._parts.items():
            if kind is None:
                os.replace(part, path)
            else:
                part.unlink(missing_ok=True)
