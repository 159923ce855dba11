"""The forward stage of the extraction pipeline: decoded segments in, one row of window features per segment out.

The windows of all segments in a batch, both directions, go through the backbone together in fixed-size micro-batches,
so that no feature depends on what it was batched with. One row in is one row out.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pthnet.errors import ModelError
from pthnet.extractor import Extractor
from pthnet.windows import LEVELS, Pyramid, frame_indices, pyramid, segment_windows
from storage.features import FEATURES
from tasks.decode_rows import DECODED
from tasks.meters import STAGES
from tasks.micro_batch import micro_batch_of

_OF_THE_TABLE = [column for column in FEATURES if column.name not in ("extractor", "created_at")]
EXTRACTED = pa.schema(
    [
        *_OF_THE_TABLE,
        *(DECODED.field(name) for name in ("attempt", "status", "stage", "fail_kind", "detail", "decode_s")),
        ("windows", pa.int32()),  # features in this row, both directions
        ("wait_s", pa.float64()),  # this row's share of the batch's seconds, so that sums over rows are totals
        ("copy_s", pa.float64()),
        ("forward_s", pa.float64()),
        ("bare_rate", pa.float64()),  # windows/s of a bare forward loop on this device; 0 when not measured
        ("batch_fill", pa.float64()),  # windows / (micro-batches x their size)
        ("micro_batch", pa.int32()),
        ("ready_at", pa.float64()),  # time.time() when this worker had its weights and could begin
    ]
)


@dataclass
class _Work:
    """One row on its way through the stage."""

    row: dict[str, Any]
    windows: dict[str, Pyramid] = field(default_factory=dict)  # by direction
    index: np.ndarray | None = None  # [windows, 16] into the segment's decoded frames, forward windows first
    features: np.ndarray | None = None  # [windows, dim]
    copied: float = 0.0  # its share of the seconds of a pass
    spent: float = 0.0

    def fail(self, kind: str, detail: str) -> None:
        self.row.update(status="failed", stage="forward", fail_kind=kind, detail=detail)
        self.features = None

    @property
    def failed(self) -> bool:
        return self.row["status"] != "ok"


class ExtractFeatures:
    """A worker of the forward pool: holds the backbone on its device.

    Parameters
    ----------
    extractor
        What to compute.
    weights
        Path or URI of the backbone's weights; None draws them from the extractor's seed.
    device
        "cuda" or "cpu".
    threads
        Threads of a forward pass on CPU.
    micro_batch
        Windows per forward pass; None leaves it to the backbone.
    frames_per_pass
        Most frames held on the device at once; a batch with more is worked in several passes.
    measure
        Time a bare forward loop first, to tell later how close the pipeline came to it.
    """

    def __init__(
        self,
        extractor: Extractor,
        *,
        weights: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        micro_batch: int | None = None,
        frames_per_pass: int = 4096,
        measure: bool = True,
    ):
        import torch

        from pthnet.allocator import keep_freed_memory
        from pthnet.backbone import build_backbone
        from storage.copies import local_copy
        from tasks.meters import Meters

        keep_freed_memory()
        if threads and device == "cpu":
            torch.set_num_threads(threads)
        if weights is None:
            self.backbone = build_backbone(extractor, device=device, micro_batch=micro_batch)
        else:
            with local_copy(weights) as path:
                self.backbone = build_backbone(extractor, weights=path, device=device, micro_batch=micro_batch)
        self.extractor = extractor
        self.frames_per_pass = frames_per_pass
        self.meters = Meters(extractor.id)
        if micro_batch is None and device == "cuda":
            self.backbone.micro_batch = micro_batch_of(self.backbone)
        self.bare_rate = self.backbone.rate(self.backbone.micro_batch) if measure else 0.0
        self.ready_at = time.time()
        self._idle_since = time.perf_counter()

    def __call__(self, rows: pa.Table) -> pa.Table:
        waited = time.perf_counter() - self._idle_since
        work = [self._plan(row) for row in rows.drop_columns(["frames"]).to_pylist()]
        frames = frame_arrays(rows)
        for batch in self._passes(work, frames):
            self._forward(work, frames, batch)
        table = self._table(rows, work, waited / max(len(work), 1))
        self._count(table)
        self._idle_since = time.perf_counter()
        return table

    def _plan(self, row: dict[str, Any]) -> _Work:
        work = _Work(row)
        if work.failed:
            return work
        indices = []
        for direction in self.extractor.directions:
            try:
                windows = row_windows(row, self.extractor.tail, direction)
            except ModelError as error:
                work.fail("frame_count_mismatch", str(error))
                return work
            work.windows[direction] = windows
            reverse = direction == "reverse"
            indices.append(frame_indices(windows.starts, row["num_frames"], reverse, row["first_frame"]))
        work.index = np.concatenate(indices)
        return work

    def _passes(self, work: list[_Work], frames: list[np.ndarray]) -> list[list[int]]:
        """Rows that go through the device together, in order, bounded in frames."""
        passes: list[list[int]] = [[]]
        held = 0
        for i, item in enumerate(work):
            if item.failed:
                continue
            if passes[-1] and held + len(frames[i]) > self.frames_per_pass:
                passes.append([])
                held = 0
            passes[-1].append(i)
            held += len(frames[i])
        return [batch for batch in passes if batch]

    def _forward(self, work: list[_Work], frames: list[np.ndarray], batch: list[int]) -> None:
        import torch

        started, copied = time.perf_counter(), self.backbone.copy_s
        try:
            found = self.backbone.extract([frames[i] for i in batch], [_index(work[i]) for i in batch])
        except torch.OutOfMemoryError as error:
            for i in batch:
                work[i].fail("out_of_memory", f"not even one window fits on the device: {str(error).splitlines()[0]}")
            return
        copied = self.backbone.copy_s - copied
        seconds = time.perf_counter() - started - copied
        total = sum(len(part) for part in found)
        for i, part in zip(batch, found, strict=True):
            work[i].features = part
            share = len(part) / max(total, 1)
            work[i].spent, work[i].copied = seconds * share, copied * share
            if not np.isfinite(part).all():
                work[i].fail("not_finite", "the backbone returned NaN or infinity; try --precision fp32")

    def _table(self, rows: pa.Table, work: list[_Work], waited: float) -> pa.Table:
        count = len(work)
        done = [0 if item.features is None else len(item.features) for item in work]
        micro = self.backbone.micro_batch
        total = sum(done)
        fill = total / (-(-total // micro) * micro) if total else 0.0
        columns: dict[str, Any] = {
            **{name: rows[name] for name in ("clip_id", "segment", "num_segments", "uri", "content", "num_frames")},
            **{name: rows[name] for name in ("fps", "width", "height", "decoder", "attempt", "decode_s")},
            **{direction: self._directed(work, direction) for direction in ("forward", "reverse")},
            **{name: [item.row[name] for item in work] for name in ("status", "stage", "fail_kind", "detail")},
            "windows": done,
            "wait_s": [waited] * count,
            "copy_s": [item.copied for item in work],
            "forward_s": [item.spent for item in work],
            "bare_rate": [self.bare_rate] * count,
            "batch_fill": [fill] * count,
            "micro_batch": [micro] * count,
            "ready_at": [self.ready_at] * count,
        }
        typed = {
            column.name: columns[column.name]
            if isinstance(columns[column.name], pa.Array | pa.ChunkedArray)
            else pa.array(columns[column.name], column.type)
            for column in EXTRACTED
        }
        return pa.table(typed).cast(EXTRACTED)

    def _count(self, table: pa.Table) -> None:
        ended = {row["values"]: row["counts"] for row in pc.value_counts(table["status"].combine_chunks()).to_pylist()}
        seconds = {stage: pc.sum(table[f"{stage}_s"]).as_py() or 0.0 for stage in STAGES}
        fill = table["batch_fill"][0].as_py() if table.num_rows else 0.0
        self.meters.count(pc.sum(table["windows"]).as_py() or 0, ended, seconds, fill)

    def _directed(self, work: list[_Work], direction: str) -> pa.Array:
        """The forward or reverse struct column; null where the row failed or the direction was not wanted."""
        struct = FEATURES.field(direction).type
        present = np.array([item.features is not None and direction in item.windows for item in work])
        windows = [item.windows[direction] if there else None for item, there in zip(work, present, strict=True)]
        matrices = []
        for item, w in zip(work, windows, strict=True):
            if w is None or item.features is None:
                matrices.append(np.empty(0, np.float32))
                continue
            first = 0 if direction == self.extractor.directions[0] else len(item.features) - len(w.starts)
            matrices.append(item.features[first : first + len(w.starts)].reshape(-1))
        nothing = np.empty(0, np.int32)
        lists: dict[str, list[np.ndarray]] = {"starts": [nothing if w is None else w.starts for w in windows]}
        lists |= {level: [nothing if w is None else w.level(level) for w in windows] for level in LEVELS}
        lists["features"] = matrices
        children = [_ragged(lists[child.name], child.type) for child in struct]
        return pa.StructArray.from_arrays(children, fields=list(struct), mask=pa.array(~present))


def row_windows(row: dict[str, Any], tail: str, direction: str) -> Pyramid:
    """The windows of one decoded row; raises ModelError where the clip's length is not the planned one."""
    if row["num_segments"] == 1:
        return pyramid(row["num_frames"], tail)
    args = row["num_frames"], row["segment"], row["num_segments"], row["segment_frames"]
    return segment_windows(*args, tail, direction)[0]


def frame_arrays(rows: pa.Table) -> list[np.ndarray]:
    """Views [frames, height, width, 3] of the decoded bytes of each row, not copied; empty where decoding failed."""
    arrays = []
    heights, widths = (rows[f"frame_{name}"].to_numpy() for name in ("height", "width"))
    for row, value in enumerate(rows["frames"]):
        buffer = value.as_buffer()
        if not buffer:
            arrays.append(np.empty((0, 0, 0, 3), np.uint8))
            continue
        arrays.append(np.frombuffer(buffer, np.uint8).reshape(-1, heights[row], widths[row], 3))
    return arrays


def _index(work: _Work) -> np.ndarray:
    assert work.index is not None
    return work.index


def _ragged(parts: list[np.ndarray], kind: pa.ListType) -> pa.Array:
    offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
    values = np.concatenate(parts) if parts else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind.value_type), type=kind)
