"""What a figure was measured on, and where its table is kept."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """One line: processor, cores, GPU, versions, commit, date."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray") if find_spec(name))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{_processor()}, {cores} cores{gpu}; Python {platform.python_version()}, {versions}; "
        f"commit {_commit()}; {datetime.now(UTC):%Y-%m-%d}"
    )


def matmul_peak(device: str, precision: str, size: int | None = None, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product that keeps the device busy, the best of several."""
    import torch

    from pthnet.matmul import fastest_exact_matmul

    size = size or (8192 if device == "cuda" else 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    with fastest_exact_matmul(device):
        while time.perf_counter() - began < seconds:
            best = min(best, _timed(lambda: a @ b, device))
    return 2 * size**3 / best


def _timed(work: Callable[[], object], device: str) -> float:
    """Seconds of a call; on CUDA by the device's own clock, of one call among several, so that no launch is in it."""
    import torch

    if device != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(5):
        work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 5e3


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> str:
    """A Markdown table with its machine below it."""
    lines = [f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, "", *notes, f"Machine: {machine()}", ""])


def keep(name: str, text: str) -> None:
    """Print a table and keep it as benchmarks/results/<name>.md."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return os.environ.get("PTHNET_COMMIT", "unknown")
    return run.stdout.strip() or os.environ.get("PTHNET_COMMIT", "unknown")
