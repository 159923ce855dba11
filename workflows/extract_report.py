"""What an extraction says: progress while it runs, a plan before, a table after."""

import json
import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.plan import Plan
    from tasks.commit import Totals
    from workflows.extract import Report


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


def print_report(report: "Report", *, as_json: bool) -> None:
    """What a run did: one table."""
    if as_json:
        print(json.dumps(asdict(report)))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    failed = sum(report.failed.values())
    if not report.done and not failed:
        console.print(f"nothing to do: {_counts(report.planned)} ({report.features}, version {report.version})")
        return
    table = Table(title=f"extracted by {report.extractor}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(report, failed):
        table.add_row(name, value)
    console.print(table)
    if failed:
        console.print(f"what failed and why: pthnet status {report.features}")


def _lines(report: "Report", failed: int) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = [
        ("clips", f"{report.done} done, {failed} quarantined; {_counts(report.planned)}"),
        ("windows", f"{report.windows} in {report.wall_s:.1f} s"),
    ]
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
