"""Clips into segments: which frames each row of the extraction pipeline decodes.

A short clip is one segment whose frame count is known once it is decoded. A long one is cut at planning time, from an
exact count of its packets, into segments of a bounded number of frames, so that memory stays flat with length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pthnet.windows import WINDOW, segments

# One row of the pipeline. num_frames and segment_frames are 0 for a clip that is decoded whole.
SEGMENTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("segment", pa.int32()),
        ("num_segments", pa.int32()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("content", pa.string()),
        ("attempt", pa.int32()),
        ("num_frames", pa.int64()),
        ("segment_frames", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SegmentLimits:
    """How much of a clip is decoded at once.

    Attributes
    ----------
    frames
        Most frames a segment owns; clips up to this length are decoded whole.
    bytes
        Most bytes of decoded RGB a segment may hold where frames travel in native size.
    """

    frames: int = 512
    bytes: int = 256 << 20

    def frames_at(self, width: int, height: int) -> int:
        """Frames of this size in a segment: bounded by both limits, at least four windows' worth."""
        per_frame = max(width * height * 3, 1)
        return max(min(self.frames, self.bytes // per_frame), 4 * WINDOW)

    def bytes_at(self, image_size: int | None) -> int:
        """Most bytes of decoded frames in a segment, of this side or (None) in native size."""
        return self.bytes if image_size is None else self.frames * image_size**2 * 3


def probe_rows(clips: pa.Table, limits: SegmentLimits, image_size: int | None) -> pa.Table:
    """Add num_frames and segment_frames to planned clips: both 0 where the whole clip is one segment.

    Parameters
    ----------
    clips
        Planned clips with uri and kind.
    image_size
        Side of the frames as they travel; None when they keep their native size.

    Returns
    -------
    pa.Table
        `clips` with two int64 columns. A clip that cannot be probed is left whole: decoding it will say why.
    """
    from tasks.probe import probe

    lengths = np.zeros((2, clips.num_rows), np.int64)
    for row, (uri, kind) in enumerate(zip(clips["uri"].to_pylist(), clips["kind"].to_pylist(), strict=True)):
        found = probe(uri, kind)
        side = image_size or 0
        most = limits.frames_at(side or found.width, side or found.height)
        if found.num_frames > most or not found.num_frames:  # a header may not say
            exact = probe(uri, kind, exact=True).num_frames
            if exact > most:
                lengths[:, row] = exact, most
    return clips.append_column("num_frames", pa.array(lengths[0])).append_column("segment_frames", pa.array(lengths[1]))


def whole_rows(clips: pa.Table) -> pa.Table:
    """Clips that shall not be probed, each as one segment; see `probe_rows`."""
    nothing = pa.array(np.zeros(clips.num_rows, np.int64))
    return clips.append_column("num_frames", nothing).append_column("segment_frames", nothing)


def cut(clips: pa.Table) -> pa.Table:
    """One row per segment, clips in the order given.

    Parameters
    ----------
    clips
        What `probe_rows` returned.

    Returns
    -------
    pa.Table
        Schema SEGMENTS.
    """
    frames = clips["num_frames"].to_numpy()
    lengths = clips["segment_frames"].to_numpy()
    counts = np.ones(clips.num_rows, np.int64)
    for row in np.flatnonzero(lengths):  # long clips only
        counts[row] = len(segments(int(frames[row]), int(lengths[row])))
    rows = np.repeat(np.arange(clips.num_rows), counts)
    ends = np.cumsum(counts)
    return (
        clips.take(pa.array(rows))
        .append_column("segment", pa.array((np.arange(len(rows)) - (ends - counts)[rows]).astype(np.int32)))
        .append_column("num_segments", pa.array(counts[rows].astype(np.int32)))
        .select(SEGMENTS.names)
        .cast(SEGMENTS)
    )


def without_done(rows: pa.Table, done: pa.Table, extractor_id: str) -> pa.Table:
    """Leave out the segments of half-finished long clips that an earlier run already committed.

    Parameters
    ----------
    rows
        Schema SEGMENTS.
    done
        Columns clip_id, segment, num_segments, content, extractor of everything in the table.
    """
    long = rows.filter(pa.compute.greater(rows["num_segments"], 1))
    if long.num_rows == 0 or done.num_rows == 0:
        return rows
    keys = ["clip_id", "segment", "num_segments", "content"]
    mine = done.filter(pa.compute.equal(done["extractor"], extractor_id)).select(keys).cast(rows.select(keys).schema)
    return rows.join(mine, keys=keys, join_type="left anti").select(SEGMENTS.names)


def begun(clips: pa.Table, done: pa.Table) -> dict[tuple[str, int], int]:
    """Segments that are in the table already of long clips that are not whole: (clip_id, num_segments) -> their number.

    Parameters
    ----------
    clips
        Planned clips, with clip_id and content.
    done
        Columns clip_id, segment, num_segments, content of the extractor's rows in the table.
    """
    long = done.filter(pa.compute.greater(done["num_segments"], 1))
    if not long.num_rows:
        return {}  # without a join that would hash every clip
    mine = long.join(clips.select(["clip_id", "content"]), keys=["clip_id", "content"], join_type="left semi")
    counted = mine.group_by(["clip_id", "num_segments"]).aggregate([("segment", "count_distinct")])
    names = counted["clip_id"].to_pylist(), counted["num_segments"].to_pylist()
    return dict(zip(zip(*names, strict=True), counted["segment_count_distinct"].to_pylist(), strict=True))


def blocks(rows: pa.Table, parallelism: int, most_rows: int = 64) -> Sequence[pa.Table]:
    """Slice the rows into blocks small enough that every core has several, and that failures cost little.

    Above 400 blocks of `most_rows` they grow, up to four times: each costs the driver memory.
    """
    most = int(np.clip(rows.num_rows // 400, most_rows, 4 * most_rows))
    size = int(np.clip(rows.num_rows // (parallelism * 8), 1, most))
    return [rows.slice(first, size) for first in range(0, rows.num_rows, size)]
