"""Feature tables of up to a million synthetic clips, and how long and how much memory their loading takes."""

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from benchmarks.machine import table
from storage.commits import commit, committed
from storage.features import FEATURES
from storage.shards import write_shard

DIM, WINDOWS = 16, 5  # a clip of 31 frames has 5, 3 and 2 windows; 16 numbers each keep a million clips on a laptop
EXTRACTOR = "synthetic-64-fp32-00000000"
SHARD_CLIPS = 50_000


def write_table(uri: str, clips: int) -> None:
    """A table of `clips` clips in shards of 50,000, made without a Python object per clip."""
    shards = []
    for first in range(0, clips, SHARD_CLIPS):
        count = min(SHARD_CLIPS, clips - first)
        rng = np.random.default_rng(first)
        columns = {
            "clip_id": pa.array(np.char.add("class/", np.char.zfill(np.arange(first, first + count).astype(str), 9))),
            "segment": pa.array(np.zeros(count, np.int32)),
            "num_segments": pa.array(np.ones(count, np.int32)),
            "uri": pa.array(np.full(count, "none")),
            "content": pa.array(np.full(count, "c")),
            "num_frames": pa.array(np.full(count, 31)),
            "fps": pa.array(np.full(count, 25.0)),
            "width": pa.array(np.full(count, 64, np.int32)),
            "height": pa.array(np.full(count, 64, np.int32)),
            "forward": _windows(count, rng),
            "reverse": _windows(count, rng),
            "decoder": pa.array(np.full(count, "none")),
            "created_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC")),
            "extractor": pa.array(np.full(count, EXTRACTOR)),
        }
        shards.append(write_shard(pa.table(columns).select(FEATURES.names).cast(FEATURES), uri, EXTRACTOR))
    commit(uri, shards, None, "synthetic", committed(uri, "synthetic") + 1, "made")


def _windows(count: int, rng: np.random.Generator) -> pa.StructArray:
    def lists(row: np.ndarray) -> pa.ListArray:
        values = np.tile(row.astype(np.int32), count)
        return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, len(row), dtype=np.int32), pa.array(values))

    size = WINDOWS * DIM
    features = rng.standard_normal(count * size, dtype=np.float32)
    fields = {
        "starts": lists(np.array([0, 4, 8, 12, 15])),
        "high": lists(np.arange(5)),
        "middle": lists(np.array([0, 2, 4])),
        "low": lists(np.array([0, 4])),
        "features": pa.ListArray.from_arrays(np.arange(0, len(features) + 1, size, dtype=np.int32), pa.array(features)),
    }
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))


_LOAD = """
import sys, time
import numpy as np
from storage.features import FeatureTable
from tasks.feature_set import load_feature_set, present
uri, extractor = sys.argv[1:]
keys = FeatureTable(uri).keys()
ids = present(keys, extractor)
del keys
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
began = time.perf_counter()
labels = np.zeros(len(ids), int)
loaded = load_feature_set(uri, [str(i) for i in ids], labels, direction="forward", extractor=extractor)
seconds = time.perf_counter() - began
arrays = [loaded.clip_ids, loaded.features, loaded.offsets, loaded.labels]
arrays += [*loaded.positions.values(), *loaded.position_offsets.values()]
print(seconds, sum(a.nbytes for a in arrays), (peak() - before) * 1024)
"""


def loading_table(most: int) -> str:
    """Seconds and memory of loading one direction, a process of its own for every size."""
    rows = []
    for clips in (size for size in (10_000, 30_000, 100_000, 300_000, 1_000_000) if size <= most):
        with tempfile.TemporaryDirectory() as uri:
            began = time.perf_counter()
            write_table(uri, clips)
            written = time.perf_counter() - began
            run = subprocess.run(
                [sys.executable, "-c", _LOAD, uri, EXTRACTOR], capture_output=True, text=True, check=True
            )
        seconds, held, grown = (float(value) for value in run.stdout.split())
        rows.append(
            [
                f"{clips:,}",
                f"{written:.1f}",
                f"{seconds:.2f}",
                f"{1e6 * seconds / clips:.1f}",
                f"{held / clips:,.0f}",
                f"{grown / clips:,.0f}",
            ]
        )
    header = (
        "clips",
        "writing, s",
        "loading, s",
        "loading, µs/clip",
        "FeatureSet, bytes/clip",
        "peak growth, bytes/clip",
    )
    notes = [
        f"One direction, {WINDOWS} windows of {DIM} numbers a clip, local disk. Peak growth holds the file being read.",
        "",
    ]
    return table("Loading a FeatureSet", header, rows, notes)
