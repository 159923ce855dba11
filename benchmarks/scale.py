"""Everything of an extraction but decoding and forward pass: planning, scheduling, shards, commits, 1k to 100k clips.

python -m benchmarks.scale --clips 1000 --clips 10000
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
FRAMES = 30


def null_decode(rows: pa.Table, **_: object) -> pa.Table:
    """Rows as the decode stage would return them for clips of 30 frames, without any frames."""
    from tasks.decode import Decoded
    from tasks.decode_rows import attach

    decoded = Decoded(frames=None, num_frames=FRAMES, fps=25.0, width=320, height=240, decoder="null")
    return attach(rows, [decoded] * rows.num_rows, [0] * rows.num_rows)


def clip_table(count: int) -> pa.Table:
    """CLIPS rows of clips that do not exist."""
    from storage.clips import CLIPS

    # In arrow throughout: lists of Python strings would stay in the memory that is measured.
    number = pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.string()), 7, "0")
    folder = pc.utf8_slice_codeunits(number, 0, 4)
    names = pc.binary_join_element_wise("archive", folder, number, "/")
    columns = {
        "clip_id": names,
        "uri": pc.binary_join_element_wise("/nowhere/", names, ".mp4", ""),
        "kind": pa.repeat("video", count),
        "content": pc.binary_join_element_wise("1", number, "-"),
        "size": pa.repeat(1, count),
    }
    return pa.table(columns).select(CLIPS.names).cast(CLIPS)


@app.default
def main(*, clips: tuple[int, ...] = (1_000, 10_000, 100_000), name: str = "scale") -> None:
    """Extract zeros for so many clips, then plan again against the full table."""
    from pthnet.backbone import build_backbone
    from workflows.extract import Settings, planned, run

    extractor = build_backbone("null", precision="bf16").extractor
    settings = Settings(batch_clips=256, measure=False)
    rows = []
    for count in clips:
        with tempfile.TemporaryDirectory() as folder:
            features = str(Path(folder) / "features")
            wanted = clip_table(count)
            report = run(wanted, features, extractor, settings=settings, decode=null_decode)
            assert report.done == count, report
            peak = _peak_mb()
            started = time.perf_counter()
            again = planned(wanted, features, extractor, settings)
            plan_s = time.perf_counter() - started
            assert not again.todo.num_rows
            size = sum(f.stat().st_size for f in Path(features).rglob("*.parquet"))
            shards = len(list((Path(features) / "features").rglob("*.parquet")))
            rows.append(
                [
                    f"{count:,}",
                    f"{report.wall_s:.1f}",
                    f"{count / report.wall_s:.0f}",
                    f"{1000 * report.wall_s / count:.2f}",
                    f"{peak:.0f}",
                    shards,
                    report.commits,
                    f"{size / 1e6:.0f}",
                    f"{plan_s:.2f}",
                    f"{_peak_mb():.0f}",
                ]
            )
            print(*rows[-1], flush=True)
    header = [
        "clips",
        "wall s",
        "clips/s",
        "ms/clip",
        "driver peak MB",
        "shards",
        "commits",
        "table MB",
        "plan again s",
        "then peak MB",
    ]
    notes = [f"Null decoder and null backbone, {FRAMES} frames a clip, local disk; one Ray for all rows.", ""]
    keep(name, table("Scale without decoding and forward pass", header, rows, notes))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    app()
