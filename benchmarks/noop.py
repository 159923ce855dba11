"""How long a run takes that finds everything done.

python -m benchmarks.noop --clips 10000
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
BACKBONES = ("null", "tiny")  # without weights, and with weights to load and fingerprint


@app.default
def main(*, clips: int = 10_000, runs: int = 5, name: str = "noop") -> None:
    """Extract once, then time the same command again.

    Parameters
    ----------
    clips
        Hard links to one tiny video.
    runs
        Times the no-op run is timed, in a fresh process each.
    """
    from benchmarks.memory import small_clips

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        videos = small_clips(Path(folder) / "videos", clips)
        for backbone in BACKBONES:
            features = f"{folder}/{backbone}"
            command = [sys.executable, "-m", "workflows.cli", "extract", str(videos), "--features", features]
            command += ["--backbone", backbone, "--random-weights", "0", "--directions", "forward"]
            first = _seconds(command)
            seconds = [_seconds(command) for _ in range(runs)]
            figures = [statistics.median(seconds), min(seconds), max(seconds)]
            rows.append([backbone, clips, f"{first:.0f}", *(f"{figure:.1f}" for figure in figures)])
    header = ["backbone", "known clips", "first run, s", "no-op run, s (median)", "fastest", "slowest"]
    notes = [f"Whole processes, import to exit; {runs} no-op runs each. Local files, one feature table per row.", ""]
    keep(name, table("A run with nothing to do", header, rows, notes))


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    app()
