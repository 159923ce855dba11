"""The columns of the feature table, the form in which a reader gets them, and when a clip counts as whole."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LEVELS = ("high", "middle", "low")
DIRECTIONS = ("forward", "reverse")

WINDOWS = pa.struct(
    [
        ("starts", pa.list_(pa.int32())),  # first frame of each window, in the direction's own frame order
        *((level, pa.list_(pa.int32())) for level in LEVELS),  # positions in starts
        ("features", pa.list_(pa.float32())),  # row-major [windows, dim]
    ]
)
FEATURES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("segment", pa.int32()),
        ("num_segments", pa.int32()),
        ("uri", pa.string()),
        ("content", pa.string()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("forward", WINDOWS),
        ("reverse", WINDOWS),
        ("decoder", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("extractor", pa.string()),
    ]
)
# The segment of a row without windows that says: at its created_at this content was asked for again. A clip that went
# from one content to another and back has the features already; from then on they are the newest again.
RECALL = -1
KEYS = pa.schema([FEATURES.field(name) for name in ("clip_id", "segment", "num_segments", "content", "extractor")])


@dataclass(frozen=True)
class ClipFeatures:
    """Window features of some clips in one direction, clip after clip in the order they were asked for.

    Clip i has the rows offsets[i]:offsets[i+1] of features and starts; its positions at a level, counted from its own
    first row, are level[level_offsets[i]:level_offsets[i+1]].
    """

    clip_ids: list[str]
    num_windows: np.ndarray  # int64 [N]
    offsets: np.ndarray  # int64 [N + 1]
    features: np.ndarray  # float32 [W, dim], contiguous
    starts: np.ndarray  # int32 [W], frames
    high: np.ndarray  # int32
    middle: np.ndarray  # int32
    low: np.ndarray  # int32
    high_offsets: np.ndarray  # int64 [N + 1]
    middle_offsets: np.ndarray  # int64 [N + 1]
    low_offsets: np.ndarray  # int64 [N + 1]
    num_frames: np.ndarray  # int64 [N]
    fps: np.ndarray  # float64 [N], frames per second

    @property
    def dim(self) -> int:
        """Length of one feature vector."""
        return int(self.features.shape[1])


def complete(keys: pa.Table) -> pa.Table:
    """The (clip_id, content, extractor) of which every segment is there.

    With created_at of the last segment where the keys have that column.
    """
    keys = keys.filter(pc.less(keys["segment"], keys["num_segments"]))
    timed = "created_at" in keys.column_names
    groups = keys.group_by(["clip_id", "content", "extractor", "num_segments"]).aggregate(
        [("segment", "count_distinct")] + ([("created_at", "max")] if timed else [])
    )
    groups = groups.filter(pc.equal(groups["segment_count_distinct"], groups["num_segments"]))
    whole = groups.group_by(["clip_id", "content", "extractor"]).aggregate([("created_at_max", "max")] if timed else [])
    return whole.rename_columns({"created_at_max_max": "created_at"}) if timed else whole


def recall_rows(clips: pa.Table, extractor_id: str, at: datetime) -> pa.Table:
    """FEATURES rows that make the contents of clips (CLIPS columns), whose features are there, the newest again."""
    count = clips.num_rows
    known = {
        **{name: clips[name] for name in ("clip_id", "uri", "content")},
        **{name: pa.repeat(pa.scalar(0), count) for name in ("num_segments", "num_frames", "fps", "width", "height")},
        "segment": pa.repeat(pa.scalar(RECALL), count),
        "created_at": pa.repeat(pa.scalar(at, FEATURES.field("created_at").type), count),
        "extractor": pa.repeat(pa.scalar(extractor_id), count),
    }
    columns = {field.name: known.get(field.name, pa.nulls(count, field.type)) for field in FEATURES}
    return pa.table(columns).cast(FEATURES)


def recalled(keys: pa.Table) -> pa.Table:
    """The rows of segments alone; where keys have created_at, it is at least the time of the content's last recall."""
    recalls = keys.filter(pc.equal(keys["segment"], RECALL))
    if not recalls.num_rows:
        return keys
    keys = keys.filter(pc.not_equal(keys["segment"], RECALL))
    if "created_at" not in keys.column_names:
        return keys
    by = ["clip_id", "content", "extractor"]
    latest = recalls.group_by(by).aggregate([("created_at", "max")])
    mine, theirs = (joined(*(rows[name] for name in by)) for rows in (keys, latest))
    at = latest["created_at_max"].combine_chunks().take(pc.index_in(mine, value_set=theirs))
    made = keys["created_at"].combine_chunks()
    place = keys.schema.get_field_index("created_at")
    later = pc.if_else(pc.fill_null(pc.greater(at, made), False), at, made)
    return keys.set_column(place, keys.schema.field(place), later)


def joined(*columns: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One string per row of several columns: pyarrow looks up single columns only. NUL stands in no path."""
    whole = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns)
    return pc.binary_join_element_wise(*whole, "\0")


def newest(whole: pa.Table) -> pa.Table:
    """One row (clip_id, extractor, content, created_at) per clip of complete(keys with times): what a reader gets."""
    ordered = whole.sort_by([("created_at", "ascending"), ("content", "ascending")])
    last = ordered.group_by(["clip_id", "extractor"], use_threads=False).aggregate(
        [("content", "last"), ("created_at", "last")]
    )
    return last.rename_columns({"content_last": "content", "created_at_last": "created_at"})
