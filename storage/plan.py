"""What is to be done: the clips of the sources, less those whose features or failures are known."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.columns import complete
from storage.quarantine import attempts


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
    """

    todo: pa.Table
    counts: dict[str, int]


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
        FeatureTable.keys(); rows of other extractors do not count.
    quarantined
        storage.quarantine.read(uri).
    max_attempts
        A clip that failed fewer times than this, with this content, is tried again.
    retry_quarantined
        Try every failed clip once more.
    """
    keys = keys.filter(pc.equal(keys["extractor"], extractor_id))
    failed = attempts(quarantined.filter(pc.equal(quarantined["extractor"], extractor_id)))
    whole = complete(keys)

    ids, content = clips["clip_id"].combine_chunks(), clips["content"].combine_chunks()
    wanted = _pairs(ids, content)
    known = _is_in(wanted, _pairs(whole["clip_id"], whole["content"]))
    place = pc.index_in(wanted, value_set=_pairs(failed["clip_id"], failed["content"]))
    tried = pc.fill_null(failed["attempts"].combine_chunks().take(place), 0).to_numpy(zero_copy_only=False)
    barred = (tried >= max(1, max_attempts)) & ~known & (not retry_quarantined)
    todo = ~known & ~barred
    retried = todo & (tried > 0)
    seen = _is_in(ids, pa.concat_arrays([_one(keys["clip_id"]), _one(failed["clip_id"])]))
    # Some segments of this very content may be there already, left by a run that was cut off: not a changed clip.
    begun = _is_in(wanted, _pairs(keys["clip_id"], keys["content"]))
    changed = todo & ~retried & seen & ~begun
    counts = {
        "new": int((todo & ~retried & ~changed).sum()),
        "changed": int(changed.sum()),
        "retried": int(retried.sum()),
        "known": int(known.sum()),
        "quarantined": int(barred.sum()),
    }
    rows = clips.append_column("attempt", pa.array((tried + 1).astype(np.int32))).filter(pa.array(todo))
    return Plan(todo=rows.combine_chunks(), counts=counts)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _pairs(ids: pa.ChunkedArray | pa.Array, content: pa.ChunkedArray | pa.Array) -> pa.Array:
    # One joined string per pair: pyarrow looks up single columns only. NUL stands in no path.
    return pc.binary_join_element_wise(_one(ids), _one(content), "\0")


def _is_in(values: pa.Array, among: pa.Array) -> np.ndarray:
    return pc.is_in(values, value_set=among).to_numpy(zero_copy_only=False)
