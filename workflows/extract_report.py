"""What an extraction says: progress while it runs, a plan before, a report after."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.plan import Plan
    from tasks.commit import Totals


@dataclass(kw_only=True)
class Report:
    """What an extraction did; also the JSON kept beside the table.

    Attributes
    ----------
    weights
        Where the backbone's weights were read, None for random ones; a model trained on the features remembers it.
    planned
        How the clips of the sources were judged; see `storage.plan.Plan`.
    recalled
        Clips that went back to a content whose features, or failure, are known: those are the newest again.
    done, failed
        Clips that ended in features, and in quarantine by kind.
    version, commits
        Delta version afterwards, and commits made.
    seconds
        By stage, summed over workers: decode, wait (of the forward stage, for decoded frames), forward, write, commit.
    windows_per_s, bare_windows_per_s, speed_of_light
        Of the pipeline from its first to its last row, of a bare forward loop on the same devices, and their ratio.
    bound_by
        What kept the ratio from 1.
    decode_cores
        Cores that must decode to keep one forward worker busy.
    """

    features: str
    extractor: str
    run_id: str
    clips: int
    planned: dict[str, int]
    weights: str | None = None
    recalled: int = 0
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    windows: int = 0
    version: int = -1
    commits: int = 0
    wall_s: float = 0.0
    pipeline_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    windows_per_s: float = 0.0
    bare_windows_per_s: float = 0.0
    speed_of_light: float | None = None
    bound_by: str = ""
    batch_fill: float = 0.0
    micro_batch: int = 0
    decode_cores: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Failed clips among those tried."""
        failed = sum(self.failed.values())
        return failed / (failed + self.done) if failed else 0.0

    def take(self, totals: "Totals", ended_at: float) -> None:
        """Take the totals of the run over; the pipeline ran from its first ready worker to `ended_at`."""
        self.done, self.failed = totals.clips, dict(totals.failed)
        self.segments, self.windows, self.commits = totals.segments, totals.windows, totals.commits
        self.seconds = {stage: round(seconds, 3) for stage, seconds in totals.seconds.items()}
        self.batch_fill, self.micro_batch = totals.batch_fill, totals.micro_batch
        if totals.seconds["forward"]:
            self.decode_cores = totals.seconds["decode"] / totals.seconds["forward"]
        self.pipeline_s = ended_at - totals.ready_at if totals.ready_at else 0.0
        self.windows_per_s = totals.windows / self.pipeline_s if self.pipeline_s else 0.0
        self.bare_windows_per_s = totals.bare_rate
        if totals.bare_rate and totals.windows:
            self.speed_of_light = self.windows_per_s / totals.bare_rate
            forward, waiting = totals.seconds["forward"], totals.seconds["wait"]
            self.bound_by = "decoding" if waiting > 0.1 * (forward + waiting) else "the forward pass"


class Progress:
    """A bar on a terminal; elsewhere one line per commit on stderr.

    Parameters
    ----------
    clips
        Clips to do.
    """

    def __init__(self, clips: int) -> None:
        from rich import progress
        from rich.console import Console

        self.clips = clips
        self._started = time.perf_counter()
        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("extracting"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("extracting", total=clips, rate="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _rate(self, totals: "Totals") -> str:
        failed = sum(totals.failed.values())
        rate = totals.windows / (time.perf_counter() - self._started)
        return f"{rate:.1f} windows/s" + (f", {failed} quarantined" if failed else "")

    def update(self, totals: "Totals") -> None:
        """Show how far the run is."""
        self._bar.update(self._task, completed=totals.tried, rate=self._rate(totals))

    def say(self, what: str) -> None:
        """Tell something that happened on the way, above the bar where there is one."""
        if self._bar.disable:
            print(what, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(what)

    def committed(self, totals: "Totals") -> None:
        """Say what is safe now."""
        self.update(totals)
        if self._bar.disable:
            print(f"committed {totals.tried} of {self.clips} clips, {self._rate(totals)}", file=sys.stderr, flush=True)


def print_plan(plan: "Plan", features: str, extractor_id: str, *, as_json: bool) -> None:
    """What a run would do."""
    if as_json:
        print(json.dumps({"features": features, "extractor": extractor_id, "planned": plan.counts}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"{features} by {extractor_id}: {_counts(plan.counts)}")
    shown = plan.todo.slice(0, 10)
    for clip_id, uri in zip(shown["clip_id"].to_pylist(), shown["uri"].to_pylist(), strict=True):
        console.print(f"  would extract {clip_id}  ({uri})", markup=False)
    if plan.todo.num_rows > shown.num_rows:
        console.print(f"  ... and {plan.todo.num_rows - shown.num_rows} more")


def print_report(report: Report, *, as_json: bool) -> None:
    """What a run did: one table."""
    if as_json:
        print(json.dumps(asdict(report)))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    failed = sum(report.failed.values())
    if not report.done and not failed:
        what = f"{report.recalled} clips went back to a known content" if report.recalled else "nothing to do"
        console.print(f"{what}: {_counts(report.planned)} ({report.features}, version {report.version})")
        return
    table = Table(title=f"extracted by {report.extractor}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(report, failed):
        table.add_row(name, value)
    console.print(table)
    if failed:
        console.print(f"what failed and why: pthnet status {report.features}")


def _lines(report: Report, failed: int) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = [
        ("clips", f"{report.done} done, {failed} quarantined; {_counts(report.planned)}"),
        ("windows", f"{report.windows} in {report.wall_s:.1f} s"),
    ]
    if report.recalled:
        lines.append(("back again", f"{report.recalled} clips went back to a content that is known"))
    if failed:
        lines.append(("quarantined", ", ".join(f"{kind} {count}" for kind, count in sorted(report.failed.items()))))
    if report.speed_of_light is not None:
        lines.append(
            (
                "speed of light",
                f"{report.speed_of_light:.2f} ({report.windows_per_s:.1f} of {report.bare_windows_per_s:.1f} windows/s "
                f"of a bare forward loop), bound by {report.bound_by}",
            )
        )
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    lines.append(("seconds", f"{stages} (summed over workers)"))
    lines.append(
        (
            "forward",
            f"micro-batches of {report.micro_batch}, {report.batch_fill:.0%} full; "
            f"{report.decode_cores:.2f} decoding cores keep one forward worker busy",
        )
    )
    lines.append(("table", f"{report.features}, version {report.version}, {report.commits} commits"))
    return lines


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no clips"
