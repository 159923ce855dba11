"""Makers of feature rows for the tests of this room."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from storage import quarantine
from storage.features import FEATURES

DIM = 4
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def windows(starts: Sequence[int], value: float = 0.0, dim: int = DIM) -> dict[str, Any]:
    """A direction's struct: window with start s has the vector value + s + 0.001 * (0, 1, ...)."""
    features = value + np.asarray(starts, np.float32)[:, None] + np.arange(dim, dtype=np.float32) / 1000
    places = range(len(starts))
    return {
        "starts": list(starts),
        "high": list(places),
        "middle": [i for i in places if i % 2 == 0],
        "low": [i for i in places if i % 4 == 0],
        "features": features.astype(np.float32).ravel().tolist(),
    }


def row(
    clip_id: str, *, segment: int = 0, num_segments: int = 1, content: str = "c0", at: int = 0, **more: Any
) -> dict:
    """A FEATURES row; `at` is seconds after an epoch."""
    return {
        "clip_id": clip_id,
        "segment": segment,
        "num_segments": num_segments,
        "uri": f"/videos/{clip_id}.mp4",
        "content": content,
        "num_frames": 24,
        "fps": 25.0,
        "width": 8,
        "height": 8,
        "forward": windows([0, 4, 8]),
        "reverse": windows([0, 4, 8], value=100.0),
        "decoder": "decord",
        "created_at": EPOCH + timedelta(seconds=at),
        "extractor": "e-1",
        **more,
    }


def table(*rows: dict[str, Any]) -> pa.Table:
    """Rows as FEATURES."""
    return pa.Table.from_pylist(list(rows), schema=FEATURES)


def failed(*clip_ids: str, content: str = "c0", attempt: int = 1, at: int = 0, kind: str = "decode_error") -> pa.Table:
    """QUARANTINE rows."""
    rows = [
        quarantine.row(
            clip_id=clip_id, segment=0, uri="u", content=content, extractor="e-1", stage="decode", kind=kind,
            detail="cannot be read", attempt=attempt, run_id="r", at=EPOCH + timedelta(seconds=at),
        )
        for clip_id in clip_ids
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=quarantine.QUARANTINE)
