"""What a prediction says at its end: the labels of a few clips one by one, of many counted."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflows.predict import PredictionResult

SHOWN = 20


def print_result(result: "PredictionResult") -> None:
    """Print the result for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    title = f"{result.clips} clips by {result.model}"
    if 0 < result.clips <= SHOWN:
        table = Table("clip", "label", "confidence", "agreement", title=title, title_justify="left")
        for row in result.read().to_pylist():
            agreement = "" if row["agreement"] is None else f"{row['agreement']:.2f}"
            table.add_row(_plain(row["clip"]), _plain(row["label"]), f"{row['confidence']:.2f}", agreement)
    else:
        table = Table("label", "clips", title=title, title_justify="left")
        for label, count in result.labels.items():
            table.add_row(_plain(label), str(count))
    console.print(table)
    if result.quarantined:
        kinds = ", ".join(f"{kind} {count}" for kind, count in result.quarantined.items())
        console.print(
            f"no prediction for {sum(result.quarantined.values())} clips: {kinds}; see {result.out}/quarantined.csv"
        )
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    console.print(f"{result.windows} windows, {result.extracted} clips extracted; seconds: {steps}")
    console.print(f"tables: {result.out}/clips.parquet, {result.out}/windows.parquet (and .csv)", soft_wrap=True)
    if result.report:
        console.print(f"page: {result.report}", soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
