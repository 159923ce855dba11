"""The table a training ends with, and what to type next."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from workflows.train import TrainResult


def show(result: "TrainResult", console: "Console") -> None:
    """Print scores per fold and pooled, the alternatives, the registry and the next commands."""
    from rich.table import Table

    from tasks.report import SHOWN, percent, table_rows

    found = result.summary["systems"]
    systems = [name for name in ("forward", "reverse", "fused") if name in found]
    clips = sum(fold["clips"] for fold in result.summary["folds"].values())
    table = Table(title=f"{result.benchmark}: {clips} test clips, {len(result.summary['folds'])} fold(s), per cent")
    table.add_column("")
    for system in systems:
        table.add_column(f"{system}\n{' / '.join(SHOWN).upper()}", justify="right", no_wrap=True)
    for row in table_rows(result.summary, result.published, systems):
        table.add_row(*row)
    console.print(table)
    for name in (name for name in found if name not in systems):
        pooled = found[name]["pooled"]
        console.print(f"{name}: WAR {percent(pooled['war'])}, UAR {percent(pooled['uar'])}", highlight=False)
    for note in result.notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(f"results: {result.folder}", highlight=False, soft_wrap=True)
    console.print(f"MLflow: {result.tracking_uri} (run {result.mlflow_run})", highlight=False, soft_wrap=True)
    for model in result.registered:
        console.print(
            f"registered: {model['name']} version {model['version']} ({model['reason']})",
            highlight=False,
            soft_wrap=True,
        )
    if result.registered:
        uri = f"models:/{result.registered[0]['name']}/{result.registered[0]['version']}"
        next_steps = f"--tracking-uri {result.tracking_uri}"
        console.print(f"next: pthnet predict VIDEO --model {uri} {next_steps}", highlight=False, soft_wrap=True)
        console.print(f"      mlflow ui --backend-store-uri {result.tracking_uri}", highlight=False, soft_wrap=True)
