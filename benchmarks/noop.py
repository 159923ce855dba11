"""How long a run takes that finds everything done.

python -m benchmarks.noop --clips 10000
"""

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
SHARD_CLIPS = 1000


@app.default
def main(*, clips: int = 10_000, runs: int = 5, backbone: str = "tiny", name: str = "noop") -> None:
    """Make an archive and a table that holds all of it, then time the command that finds nothing to do.

    Parameters
    ----------
    clips
        Hard links to one tiny video.
    runs
        Times it is timed, in a fresh process each.
    backbone
        Its weights are drawn, and digested to name the extractor, in every run.
    """
    from benchmarks.memory import small_clips

    with tempfile.TemporaryDirectory() as folder:
        videos = small_clips(Path(folder) / "videos", clips)
        features = f"{folder}/features"
        known(str(videos), features, backbone)
        command = [sys.executable, "-m", "workflows.cli", "extract", str(videos), "--features", features]
        command += ["--backbone", backbone, "--random-weights", "0", "--precision", "fp32"]
        seconds = [_seconds(command) for _ in range(runs)]
    figures = [statistics.median(seconds), min(seconds), max(seconds)]
    rows = [[backbone, clips, runs, *(f"{figure:.1f}" for figure in figures)]]
    header = ["backbone", "known clips", "runs", "seconds (median)", "fastest", "slowest"]
    notes = ["Whole processes, from import to exit, one after another. Local files, ten shards.", ""]
    keep(name, table("A run with nothing to do", header, rows, notes))


def known(videos: str, features: str, backbone: str) -> None:
    """A table that holds one window, forward and reverse, of every clip below a folder."""
    import numpy as np
    import pyarrow as pa

    from storage.columns import FEATURES, LEVELS
    from storage.commits import commit
    from storage.features import FeatureTable
    from storage.shards import write_shard
    from storage.sources import list_clips
    from tasks.resolve import resolve_extractor

    extractor = resolve_extractor(backbone, random_weights=0, precision="fp32")
    FeatureTable(features).put_extractor(extractor.id, extractor.to_json())
    clips = list_clips([videos])
    window = {"starts": [0], **{level: [0] for level in LEVELS}, "features": np.zeros(extractor.dim).tolist()}
    facts = {"segment": 0, "num_segments": 1, "num_frames": 6, "fps": 25.0, "width": 64, "height": 48}
    facts |= {"forward": window, "reverse": window, "decoder": "none", "created_at": datetime.now(UTC)}
    shards = []
    for first in range(0, clips.num_rows, SHARD_CLIPS):
        part = clips.slice(first, SHARD_CLIPS)
        columns = {column: part[column] for column in ("clip_id", "uri", "content")}
        columns |= {
            key: pa.repeat(pa.scalar(value, FEATURES.field(key).type), part.num_rows) for key, value in facts.items()
        }
        columns["extractor"] = pa.repeat(extractor.id, part.num_rows)
        shards.append(write_shard(pa.table(columns).select(FEATURES.names), features, extractor.id))
    commit(features, shards, None, f"pthnet/{extractor.id}", 1, "benchmark")


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    if "nothing to do" not in done.stdout:
        raise RuntimeError(f"this run found something to do: {done.stdout}")
    return time.perf_counter() - started


if __name__ == "__main__":
    app()
