"""Everything of an extraction but decoding and forward pass: planning, scheduling, shards, commits, 1k to 100k clips.

python -m benchmarks.scale --clips 1000 --clips 10000
"""

import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
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

    names = [f"archive/{i // 1000:04d}/{i:07d}" for i in range(count)]
    columns = {
        "clip_id": names,
        "uri": [f"/nowhere/{name}.mp4" for name in names],
        "kind": ["video"] * count,
        "content": [f"1-{i}" for i in range(count)],
        "size": [1] * count,
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
                    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
                    shards,
                    report.commits,
                    f"{size / 1e6:.0f}",
                    f"{plan_s:.2f}",
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
    ]
    notes = [f"Null decoder and null backbone, {FRAMES} frames a clip, local disk; one Ray for all rows.", ""]
    keep(name, table("Scale without decoding and forward pass", header, rows, notes))


if __name__ == "__main__":
    app()
