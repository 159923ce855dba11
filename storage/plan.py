"""What is to be done: the clips of the sources, less those whose features or failures are known."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import quarantine
from storage.columns import complete, joined


@dataclass(frozen=True)
class Plan:
    """The clips to process, and how all clips were judged.

    Attributes
    ----------
    todo : pa.Table
        CLIPS columns and attempt (int32, 1 for the first try), in the order of the sources.
    counts : dict
        new (never seen), changed (seen with other content), retried (failed before, tried again), known (features are
        there), quarantined (failed as often as allowed). They add up to the clips of the sources.
    recalled : pa.Table
        CLIPS of those known whose content is not the one seen last, as they went from it to another and back. Their
        features are to be made the newest again.
    refailed : pa.Table
        The last failure, schema QUARANTINE, of those quarantined of which the same is true.
    """

    todo: pa.Table
    counts: dict[str, int]
    recalled: pa.Table
    refailed: pa.Table


def plan(
    clips: pa.Table,
    keys: pa.Table,
    quarantined: pa.Table,
    extractor_id: str,
    *,
    max_attempts: int = 1,
    retry_quarantined: bool = False,
) -> Plan:
    """Judge every clip by its content and the wanted extractor.

    Parameters
    ----------
    clips
        CLIPS of the sources.
    keys
        FeatureTable.keys(times=True); rows of other extractors do not count. Without times nothing is recalled.
    quarantined
        storage.quarantine.read(uri).
    max_attempts
        A clip that failed fewer times than this, with this content, is tried again.
    retry_quarantined
        Try every failed clip once more.
    """
    keys = keys.filter(pc.equal(keys["extractor"], extractor_id))
    failures = quarantined.filter(pc.equal(quarantined["extractor"], extractor_id))
    failed = quarantine.attempts(failures)
    whole = complete(keys)

    ids, content = clips["clip_id"].combine_chunks(), clips["content"].combine_chunks()
    wanted = joined(ids, content)
    known = _is_in(wanted, joined(whole["clip_id"], whole["content"]))
    place = pc.index_in(wanted, value_set=joined(failed["clip_id"], failed["content"]))
    tried = pc.fill_null(failed["attempts"].combine_chunks().take(place), 0).to_numpy(zero_copy_only=False)
    barred = (tried >= max(1, max_attempts)) & ~known & (not retry_quarantined)
    todo = ~known & ~barred
    retried = todo & (tried > 0)
    seen = _is_in(ids, pa.concat_arrays([_one(keys["clip_id"]), _one(failed["clip_id"])]))
    # Some segments of this very content may be there already, left by a run that was cut off: not a changed clip.
    begun = _is_in(wanted, joined(keys["clip_id"], keys["content"]))
    changed = todo & ~retried & seen & ~begun
    counts = {
        "new": int((todo & ~retried & ~changed).sum()),
        "changed": int(changed.sum()),
        "retried": int(retried.sum()),
        "known": int(known.sum()),
        "quarantined": int(barred.sum()),
    }
    rows = clips.append_column("attempt", pa.array((tried + 1).astype(np.int32))).filter(pa.array(todo))
    last = quarantine.last(failures, ["clip_id", "content", "extractor"])
    lapsed = _lapsed(ids, content, whole, last)
    again = joined(ids, content).filter(pa.array(barred & lapsed))
    return Plan(
        todo=rows.combine_chunks(),
        counts=counts,
        recalled=clips.filter(pa.array(known & lapsed)).combine_chunks(),
        refailed=last.filter(_is_in(joined(last["clip_id"], last["content"]), again)),
    )


def _lapsed(ids: pa.Array, content: pa.Array, whole: pa.Table, last: pa.Table) -> np.ndarray:
    """Whether the newest that is known of a clip, features or failure, is of another content."""
    if "created_at" not in whole.column_names:
        return np.zeros(len(ids), bool)
    names = ["clip_id", "content", "at", "rank"]
    done = whole.append_column("rank", pa.repeat(1, whole.num_rows)).rename_columns({"created_at": "at"}).select(names)
    lost = last.append_column("rank", pa.repeat(0, last.num_rows)).select(names)
    facts = pa.concat_tables([done, lost.cast(done.schema)])
    facts = facts.sort_by([("at", "ascending"), ("rank", "ascending"), ("content", "ascending")])
    seen = facts.group_by("clip_id", use_threads=False).aggregate([("content", "last")])
    now = _one(seen["content_last"]).take(pc.index_in(ids, value_set=_one(seen["clip_id"])))
    return pc.fill_null(pc.not_equal(now, content), False).to_numpy(zero_copy_only=False)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_in(values: pa.Array, among: pa.Array) -> np.ndarray:
    return pc.is_in(values, value_set=among).to_numpy(zero_copy_only=False)
