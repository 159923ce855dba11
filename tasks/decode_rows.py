"""The decode stage of the extraction pipeline: planned segments in, the same rows with uint8 frames out.

One row in is one row out; a segment that cannot be decoded leaves as a row whose status says why.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pthnet.windows import segment_windows
from storage.errors import StorageError
from storage.files import is_full
from tasks.decode import READER, Decoded, DecodePool, DecodeRequest
from tasks.segments import SEGMENTS

DECODED = pa.schema(
    [
        *SEGMENTS,
        (
            "frames",
            pa.large_binary(),
        ),  # row-major [frames, frame_height, frame_width, 3], uint8 RGB; empty where status is failed
        ("frame_height", pa.int32()),
        ("frame_width", pa.int32()),
        ("first_frame", pa.int64()),  # number within the clip of the first decoded frame
        ("fps", pa.float64()),
        ("width", pa.int32()),  # of the video itself
        ("height", pa.int32()),
        ("decoder", pa.string()),
        ("status", pa.string()),  # ok | failed
        ("stage", pa.string()),
        ("fail_kind", pa.string()),
        ("detail", pa.string()),
        ("decode_s", pa.float64()),
    ]
)


@cache
def _pool(timeout_s: float, reader: str) -> DecodePool:
    """One warm child process per worker process; it ends with it."""
    return DecodePool(workers=1, timeout_s=timeout_s, reader=reader)


def decode_rows(
    rows: pa.Table,
    *,
    image_size: int | None,
    timeout_s: float,
    whole_limit: int,
    tail: str = "cover",
    reader: str = READER,
) -> pa.Table:
    """Decode a block of segments.

    Parameters
    ----------
    rows
        Schema SEGMENTS.
    image_size
        Side the frames are resized to, or None to keep their native size.
    timeout_s
        Seconds one segment may take before its decoder is killed.
    whole_limit
        Most frames a clip decoded whole may turn out to have; beyond it, its header lied.
    reader
        What reads in the child, as in `tasks.decode.DecodePool`.

    Returns
    -------
    pa.Table
        Schema DECODED, as many rows in the same order.
    """
    size = None if image_size is None else (image_size, image_size)
    requests = [_request(row, size, whole_limit, tail) for row in rows.select(SEGMENTS.names).to_pylist()]
    try:
        decoded = _pool(timeout_s, reader).decode(requests)
    except OSError as error:
        if not is_full(error):
            raise
        raise StorageError(
            f"no space left for copies of clips in {tempfile.gettempdir()}; free some or set TMPDIR to a larger disk, "
            "and run the same command again, what is committed is kept"
        ) from error
    return attach(rows, decoded, [request.first for request in requests])


def in_parts(rows: pa.Table, *, decode: Callable[..., pa.Table], part_rows: int, **how: Any) -> Iterator[pa.Table]:
    """Decode a block of segments a few rows at a time, so that a task never holds the frames of all of them.

    Parameters
    ----------
    decode
        `decode_rows`, called with `how`.
    part_rows
        Rows whose frames are held at once.
    """
    for first in range(0, rows.num_rows, part_rows):
        yield decode(rows.slice(first, part_rows), **how)


def _request(row: dict, size: tuple[int, int] | None, whole_limit: int, tail: str) -> DecodeRequest:
    first, last, expected = 0, None, None
    if row["num_segments"] > 1:
        expected = row["num_frames"]
        _, (first, last) = segment_windows(expected, row["segment"], row["num_segments"], row["segment_frames"], tail)
    return DecodeRequest(
        uri=row["uri"],
        kind=row["kind"],
        content=row["content"],
        first=first,
        last=last,
        num_frames=expected,
        size=size,
        max_frames=whole_limit,
    )


def attach(rows: pa.Table, decoded: list[Decoded], first: list[int]) -> pa.Table:
    """Join what the decoder returned to the rows it was asked for, copying each frame once.

    Returns
    -------
    pa.Table
        Schema DECODED.
    """
    sizes = np.array([0 if d.frames is None else d.frames.nbytes for d in decoded], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    data = np.empty(offsets[-1], np.uint8)
    for d, start, size in zip(decoded, offsets, sizes, strict=False):
        if d.frames is not None:
            data[start : start + size] = d.frames.reshape(-1)
    frames = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(decoded), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    shapes = [(0, 0) if d.frames is None else d.frames.shape[1:3] for d in decoded]
    columns = {
        **{name: rows[name] for name in SEGMENTS.names},
        "num_frames": pa.array([d.num_frames for d in decoded], pa.int64()),
        "frames": frames,
        "frame_height": pa.array([h for h, _ in shapes], pa.int32()),
        "frame_width": pa.array([w for _, w in shapes], pa.int32()),
        "first_frame": pa.array(first, pa.int64()),
        "fps": pa.array([d.fps for d in decoded], pa.float64()),
        "width": pa.array([d.width for d in decoded], pa.int32()),
        "height": pa.array([d.height for d in decoded], pa.int32()),
        "decoder": pa.array([d.decoder for d in decoded], pa.string()),
        "status": pa.array([d.status for d in decoded], pa.string()),
        "stage": pa.array(["decode"] * len(decoded), pa.string()),
        "fail_kind": pa.array([d.kind for d in decoded], pa.string()),
        "detail": pa.array([d.detail for d in decoded], pa.string()),
        "decode_s": pa.array([d.seconds for d in decoded], pa.float64()),
    }
    return pa.table(columns).select(DECODED.names).cast(DECODED)
