"""What an extraction asks of S3, counted request by request: the unit costs behind the sizing in docs/cluster.md.

python -m benchmarks.requests
"""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
DIM, WINDOWS = 1408, 5  # of a ViT-g feature; windows of a clip of 30 frames
SHARD_CLIPS = 64
COMMITS = 60
READS = ("GET", "HEAD")


@dataclass
class Bucket:
    """A bucket of a mock S3 server whose log tells what was asked of it."""

    log: Path
    read: int = 0

    def asked(self) -> Counter[str]:
        """Requests by kind since the last look: list, read (GET and HEAD), write (PUT and POST)."""
        time.sleep(0.2)
        lines = self.log.read_text().splitlines()
        fresh, self.read = lines[self.read :], len(lines)
        found: Counter[str] = Counter()
        for line in fresh:
            if request := re.search(r'"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP', line):
                method, path = request.groups()
                kind = "list" if method == "GET" and "list-type" in path else "read" if method in READS else "write"
                found[kind] += 1
        return found


@app.default
def main(
    *, clips: int = 2_000, shards: int = 120, files: tuple[int, ...] = (1_000, 10_000, 84_000), name: str = "requests"
) -> None:
    """List clips, decode a few, write and commit shards, plan; then commit to tables of many files."""
    os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
    rows: list[list[object]] = []

    def row(what: str, count: int, asked: Counter[str], seconds: float, per: str) -> None:
        each = [f"{asked[kind] / count:.3g}" for kind in ("list", "read", "write")]
        rows.append([what, f"{count:,}", per, *each, f"{1000 * seconds / count:.3g}"])
        print(*rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as bucket:
        fill(clips)
        bucket.asked()
        started = time.perf_counter()
        from storage.sources import list_clips

        found = list_clips(["s3://bucket/videos"])
        row("list the sources", found.num_rows, bucket.asked(), time.perf_counter() - started, "clip")
        assert found.num_rows == clips

        started = time.perf_counter()
        done = decode(found.slice(0, 50))
        row("probe and decode", done, bucket.asked(), time.perf_counter() - started, "clip")

        sizes, commits = write_and_commit(shards)
        for what, asked, seconds in commits(bucket):
            row(what, shards, asked, seconds, what.split()[-1])

        started = time.perf_counter()
        keys = keys_of("s3://bucket/features")
        assert keys == shards * SHARD_CLIPS
        row("plan against the table", shards, bucket.asked(), time.perf_counter() - started, "shard")
    stored = sum(sizes) / (shards * SHARD_CLIPS * 2 * WINDOWS)
    notes = [
        "Mock S3 on loopback: requests are counted, its milliseconds say nothing of a real store.",
        f"{SHARD_CLIPS} clips of {WINDOWS} windows of {DIM} numbers, both directions, in a shard, a shard in a commit.",
        f"Normal numbers rounded to bf16 take {stored:.0f} bytes a window as stored ({stored / DIM:.2f} a number).",
        "",
    ]
    header = ["step", "count", "per", "LIST", "GET, HEAD", "PUT, POST", "ms here"]
    requests = table("Requests to S3", header, rows, notes)
    keep(name, f"{requests}\n{against_files(files)}")


def against_files(sizes: tuple[int, ...]) -> str:
    """What one more commit takes in a table of many files, on local disk: its log is real, its files are not."""
    from storage import delta
    from storage.commits import commit

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        version = files = 0
        for size in sizes:
            commit(folder, [no_shard(n) for n in range(files, size)], None, "benchmark", version + 1, "run")
            started = time.perf_counter()
            for number in range(COMMITS):  # through one checkpoint of the log at least
                commit(folder, [no_shard(size + number)], None, "benchmark", version + 2 + number, "run")
            commit_s = (time.perf_counter() - started) / COMMITS
            version, files = version + 1 + COMMITS, size + COMMITS
            started = time.perf_counter()
            assert delta.active_files(delta.open_table(f"{folder}/features")).num_rows == files
            opening_s = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append([f"{size:,}", f"{1000 * commit_s:.0f}", f"{opening_s:.2f}", f"{peak:.0f}"])
            print(*rows[-1], flush=True)
    header = ["files in the table", "ms a commit", "opening and listing, s", "peak MB of the process"]
    return table("Commits to a table of many files", header, rows, [f"Mean of {COMMITS} commits.", ""])


def no_shard(number: int) -> dict[str, Any]:
    """What a commit would add for a shard that is not there."""
    first, last = f"{number:09}", f"{number + 1:09}"
    stats = {"numRecords": 1191, "minValues": {"clip_id": first}, "maxValues": {"clip_id": last}, "nullCount": {}}
    path = f"extractor=benchmark/{number:032x}.parquet"
    partition = {"extractor": "benchmark"}
    return {"path": path, "size": 23 << 20, "stats": json.dumps(stats), "partition": partition, "modified": 1}


@contextmanager
def server(folder: Path) -> Iterator[Bucket]:
    """A mock S3 in a process of its own, and the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    os.environ.update(AWS_REGION="us-east-1", AWS_ALLOW_HTTP="true", AWS_EC2_METADATA_DISABLED="true")
    log = folder / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"the mock S3 did not start: {log.read_text()[-500:]}") from None
                time.sleep(0.1)
        yield Bucket(log)
    finally:
        process.terminate()
        process.wait()


def fill(clips: int) -> None:
    """One small video under many names."""
    import boto3

    from tasks.synth import plan_clip, render_clip

    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    with tempfile.TemporaryDirectory() as folder:
        clip = plan_clip(0, 0, "easy")
        render_clip(clip, Path(folder))
        (video,) = Path(folder).rglob("*.mp4")
        client.upload_file(str(video), "bucket", "videos/0000/0000000.mp4")
    for number in range(1, clips):
        source = "bucket/videos/0000/0000000.mp4"
        client.copy_object(Bucket="bucket", CopySource=source, Key=f"videos/{number // 1000:04}/{number:07}.mp4")


def decode(clips: pa.Table) -> int:
    """Probe and decode clips as a decode task does; how many came out well."""
    from storage.features import FeatureTable
    from storage.plan import plan
    from storage.quarantine import QUARANTINE
    from tasks.decode_rows import decode_rows
    from tasks.segments import SegmentLimits, cut, probe_rows

    keys = FeatureTable("s3://bucket/features").keys()
    todo = plan(clips, keys, QUARANTINE.empty_table(), "benchmark").todo
    segments = cut(probe_rows(todo, SegmentLimits(), 224))
    done = decode_rows(segments, image_size=224, timeout_s=60.0, whole_limit=2048, tail="cover")
    assert set(done["status"].to_pylist()) == {"ok"}
    return int(done.num_rows)


def write_and_commit(shards: int) -> tuple[list[int], Any]:
    """The sizes of the shards, known once `steps` ran, and `steps`, which yields what each step asked."""
    sizes: list[int] = []

    def steps(bucket: Bucket) -> Iterator[tuple[str, Counter[str], float]]:
        from storage.commits import commit
        from storage.shards import write_shard

        made = [shard_rows(number) for number in range(shards)]
        started = time.perf_counter()
        written = [write_shard(rows, "s3://bucket/features", "benchmark") for rows in made]
        sizes.extend(shard["size"] for shard in written)
        yield "write a shard", bucket.asked(), time.perf_counter() - started
        started = time.perf_counter()
        for number, shard in enumerate(written):
            commit("s3://bucket/features", [shard], None, "benchmark", number + 1, "run")
        yield "make a commit", bucket.asked(), time.perf_counter() - started

    return sizes, steps


def shard_rows(number: int) -> pa.Table:
    """Rows of the feature table with numbers as a backbone in bf16 leaves them."""
    from storage.columns import FEATURES

    generator = np.random.default_rng(number)

    def pyramid() -> dict[str, Any]:
        numbers = generator.standard_normal(WINDOWS * DIM).astype(np.float32)
        features = (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)
        return {"starts": [0, 4, 8, 12, 14], "high": range(5), "middle": [0, 2, 4], "low": [0, 4], "features": features}

    clip = {"segment": 0, "num_segments": 1, "num_frames": 30, "fps": 25.0, "width": 640, "height": 480}
    made = {"extractor": "benchmark", "decoder": "null", "created_at": datetime.now(UTC)}
    rows = []
    for position in range(SHARD_CLIPS):
        name = f"{number:04}/{position:04}"
        names = {"clip_id": name, "uri": f"s3://bucket/videos/{name}.mp4", "content": f"1-{name}"}
        rows.append({**names, **clip, **made, "forward": pyramid(), "reverse": pyramid()})
    return pa.Table.from_pylist(rows, schema=FEATURES)


def keys_of(uri: str) -> int:
    """Rows that a plan reads."""
    from storage.features import FeatureTable

    return int(FeatureTable(uri).keys("benchmark").num_rows)


if __name__ == "__main__":
    app()
