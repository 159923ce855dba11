"""Peak memory of a whole extraction: a short and a long video, few and many clips.

python -m benchmarks.memory
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
FPS = 25
INTERVAL_S = 0.5


@dataclass
class Peak:
    """Most memory that a process and its descendants held at once, bytes."""

    total: int = 0
    processes: int = 0


@app.default
def main(
    *,
    minutes: list[int] | None = None,
    clips: list[int] | None = None,
    name: str = "memory",
) -> None:
    """Extract from archives of growing length and number, each in a fresh process with a Ray of its own.

    Parameters
    ----------
    minutes
        Lengths of a single 320x240 video; 5 and 60 by default.
    clips
        Numbers of tiny clips, without a backbone; 1000 and 20000 by default.
    """
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for length in minutes or [5, 60]:
            video = long_video(folder / f"{length}-minutes" / "video.mp4", length)
            rows.append(_row(f"one video of {length} minutes", "tiny", video.parent, folder))
        for count in clips or [1_000, 20_000]:
            rows.append(_row(f"{count} clips", "null", small_clips(folder / f"{count}-clips", count), folder))
    header = ["archive", "backbone", "peak, MB", "of the first", "processes", "seconds"]
    first = {}
    for row in rows:
        base = first.setdefault(row[1], float(row[2]))
        row.insert(3, f"{float(row[2]) / base:.2f}")
    notes = [
        f"PSS summed over the driver and its descendants (Ray, its workers, decoders), every {INTERVAL_S} s.",
        "Forward direction only.",
        "",
    ]
    keep(name, table("Memory of an extraction", header, rows, notes))


def _row(archive: str, backbone: str, videos: Path, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "workflows.cli", "extract", str(videos), "--directions", "forward"]
    command += ["--features", str(folder / f"{videos.name}-features"), "--backbone", backbone, "--random-weights", "0"]
    started = time.perf_counter()
    peak = measured(command)
    seconds = time.perf_counter() - started
    print(f"{archive}: {peak.total / 1e6:.0f} MB, {seconds:.0f} s", file=sys.stderr, flush=True)
    return [archive, backbone, f"{peak.total / 1e6:.0f}", str(peak.processes), f"{seconds:.0f}"]


def measured(command: list[str]) -> Peak:
    """Run a command to its end; the peak memory of its whole tree."""
    peak, ended = Peak(), threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            tree = descendants(process.pid)
            total = sum(map(proportional_set_size, tree))
            if total > peak.total:
                peak.total, peak.processes = total, len(tree)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        if process.wait():
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
    finally:
        ended.set()
        watcher.join()
    return peak


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def proportional_set_size(pid: int) -> int:
    """Bytes of a process, shared pages divided among those that share them; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return 0


def small_clips(folder: Path, count: int) -> Path:
    """Hard links to one tiny video, in folders of a thousand."""
    source = _moving(folder.parent / f"{folder.name}.mp4", frames=6, size=64)
    for index in range(count):
        path = folder / f"{index // 1000:03d}" / f"{index % 1000:03d}.mp4"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        os.link(source, path)
    return folder


def long_video(path: Path, minutes: int) -> Path:
    """A 320x240 video: one minute encoded, then repeated without coding it again."""
    import av

    path.parent.mkdir(parents=True)
    minute = _moving(path.parent.parent / "minute.mp4", frames=60 * FPS, size=320)
    with av.open(str(path), "w") as out:
        stream = None
        for repeat in range(minutes):
            with av.open(str(minute)) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                shift = int(repeat * 60 / video.time_base)
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        out.mux(packet)
    return path


def _moving(path: Path, frames: int, size: int) -> Path:
    import numpy as np

    from tasks.synth import encode

    if not path.exists():
        height, width = size * 3 // 4, size
        grain = 16  # pixels: as coarse as a real picture, so that the file is no larger than one
        coarse = np.random.default_rng(0).integers(
            0, 256, (height // grain + 1, (width + frames) // grain + 1, 3), np.uint8
        )
        noise = np.ascontiguousarray(coarse.repeat(grain, 0).repeat(grain, 1)[:height])
        strides = noise.strides
        # Frame t is the noise shifted by t: views, not copies.
        shape, steps = (frames, height, width, 3), (strides[1], *strides)
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(np.lib.stride_tricks.as_strided(noise, shape, steps), FPS, path)
    return path


if __name__ == "__main__":
    app()
