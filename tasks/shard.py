"""The write stage: finished rows of the pipeline become one Parquet shard and a table of failures.

Runs where the rows lie; only what a commit needs travels to the driver.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.columns import recall_rows
from storage.errors import StorageError
from storage.features import FEATURES
from storage.plan import Plan
from storage.quarantine import QUARANTINE
from storage.shards import write_shard
from tasks.meters import STAGES


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one write task did.

    Attributes
    ----------
    shard
        What a commit adds; None when no row succeeded.
    quarantine
        Failed rows, schema QUARANTINE.
    clips
        Clips written whole, in one segment.
    parts
        (clip_id, num_segments, segments written here) of clips in several segments.
    windows
        Features written, both directions counted.
    seconds
        Summed by stage: decode, wait, forward, write.
    bare_rate
        Windows per second of a bare forward loop on one device, 0 when not measured.
    batch_fill
        Mean share of the micro-batches' places that held a window.
    micro_batch
        Windows per forward pass; the smallest seen, as running out of memory halves it.
    ready_at
        time.time() when the first forward worker seen here could begin.
    """

    shard: dict[str, Any] | None
    quarantine: pa.Table
    clips: int = 0
    parts: list[tuple[str, int, int]] = field(default_factory=list)
    segments: int = 0
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    bare_rate: float = 0.0
    batch_fill: float = 0.0
    micro_batch: int = 0
    ready_at: float = 0.0


def write_rows(*blocks: pa.Table, uri: str, extractor_id: str, run_id: str) -> Written:
    """Write the rows that succeeded as one shard; turn the others into quarantine rows.

    Parameters
    ----------
    blocks
        Schema EXTRACTED of the forward stage.
    uri
        The feature table.

    Raises
    ------
    StorageError
        When the shard cannot be written (disk full, access denied); nothing of it is left behind.
    """
    started = time.perf_counter()
    at = datetime.now(UTC)
    rows = pa.concat_tables(blocks)
    succeeded = pc.equal(rows["status"], "ok")
    bad = rows.filter(pc.invert(succeeded))
    good = rows.filter(succeeded) if bad.num_rows else rows  # mostly all are, and a copy is not small
    shard = None
    if good.num_rows:
        stamped = good.append_column("extractor", pa.repeat(pa.scalar(extractor_id), good.num_rows))
        stamped = stamped.append_column("created_at", pa.repeat(pa.scalar(at, _type("created_at")), good.num_rows))
        try:
            shard = write_shard(stamped.select(FEATURES.names), uri, extractor_id)
        except OSError as error:
            raise StorageError(
                f"cannot write a shard to {uri}: {error}; put that right and run the same command again, "
                "what is committed is kept"
            ) from error
    whole = pc.sum(pc.equal(good["num_segments"], 1)).as_py() or 0
    long = good.filter(pc.greater(good["num_segments"], 1)).group_by(["clip_id", "num_segments"])
    counted = long.aggregate([([], "count_all")])
    seconds = {stage: pc.sum(rows[f"{stage}_s"]).as_py() or 0.0 for stage in STAGES}
    return Written(
        shard=shard,
        quarantine=_quarantine(bad, extractor_id, run_id, at),
        clips=whole,
        parts=list(zip(*(counted[name].to_pylist() for name in ("clip_id", "num_segments", "count_all")), strict=True)),
        segments=good.num_rows,
        windows=pc.sum(good["windows"]).as_py() or 0,
        seconds={**seconds, "write": time.perf_counter() - started},
        bare_rate=pc.max(rows["bare_rate"]).as_py() or 0.0,
        batch_fill=pc.mean(good["batch_fill"]).as_py() or 0.0,
        micro_batch=pc.min(rows["micro_batch"]).as_py() or 0,
        ready_at=pc.min(rows["ready_at"]).as_py() or 0.0,
    )


def write_recalls(plan: Plan, *, uri: str, extractor_id: str, run_id: str) -> Written:
    """Write down which features, and which failures, became those of the clips' contents again."""
    at = datetime.now(UTC)
    shard = None
    if plan.recalled.num_rows:
        shard = write_shard(recall_rows(plan.recalled, extractor_id, at), uri, extractor_id, run_id=run_id)
    count, again = plan.refailed.num_rows, plan.refailed
    for name, value in (("run_id", run_id), ("at", at)):
        kind = QUARANTINE.field(name)
        again = again.set_column(QUARANTINE.get_field_index(name), kind, pa.repeat(pa.scalar(value, kind.type), count))
    return Written(shard=shard, quarantine=again)


def _type(name: str) -> pa.DataType:
    return FEATURES.field(name).type


def _quarantine(bad: pa.Table, extractor_id: str, run_id: str, at: datetime) -> pa.Table:
    def constant(value: Any, name: str) -> pa.Array:
        return pa.repeat(pa.scalar(value, QUARANTINE.field(name).type), bad.num_rows)

    columns = {name: bad[name] for name in ("clip_id", "segment", "uri", "content", "stage", "detail", "attempt")}
    columns |= {"kind": bad["fail_kind"], "extractor": constant(extractor_id, "extractor")}
    columns |= {"run_id": constant(run_id, "run_id"), "at": constant(at, "at")}
    return pa.table(columns).select(QUARANTINE.names).cast(QUARANTINE)
