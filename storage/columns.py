"""The columns of the feature table, the form in which a reader gets them, and when a clip counts as whole."""

from dataclasses import dataclass

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
