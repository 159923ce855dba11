"""The registry from the command line: what there is, who is champion and why, and how to change it.

pthnet models list
pthnet models promote pthnet-dfew 3 --features features/ --list test.txt
"""

import json as json_module
from typing import Any, Literal

from cyclopts import App

models = App(name="models", help="List, show, compare, promote and roll back registered models.")

COMPARED = ("uar", "war", "evaluation_data", "benchmark", "fold", "extractor", "table_version", "run", "source")


@models.command(name="list")
def list_models(*, tracking_uri: str | None = None, json: bool = False) -> int:
    """List the registered models with their champions and candidates.

    Parameters
    ----------
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    json
        Print one JSON list.
    """
    client = _client(tracking_uri)
    found = []
    for model in client.search_registered_models():
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        versions = client.search_model_versions(f"name='{_quoted(model.name)}'")
        champion = next((v for v in versions if str(v.version) == aliases.get("champion")), None)
        scored = {metric: _number(champion.tags.get(metric)) if champion else None for metric in ("uar", "war")}
        found.append({"name": model.name, "versions": len(versions), **_aliases(aliases), **scored})
    if json:
        print(json_module.dumps(found))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "versions", "champion", "candidate", "champion's UAR", "WAR", box=None, pad_edge=False)
    for row in found:
        scores = (_percent(row["uar"]), _percent(row["war"]))
        table.add_row(row["name"], str(row["versions"]), row["champion"] or "-", row["candidate"] or "-", *scores)
    Console().print(table if found else "no models yet: pthnet train or pthnet import-model registers one")
    return 0


@models.command
def show(name: str, version: str | None = None, /, *, tracking_uri: str | None = None, json: bool = False) -> int:
    """Show the versions of a model, or all that is known of one.

    Parameters
    ----------
    name
        Of the registered model.
    version
        A number, champion or candidate.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    json
        Print JSON.
    """
    from rich.console import Console
    from rich.table import Table

    client = _client(tracking_uri)
    versions = [_version(client, name, version)] if version else _versions(client, name)
    rows = [_described(client, each) for each in versions]
    if json:
        print(json_module.dumps(rows if version is None else rows[0]))
        return 0
    console = Console(highlight=False)
    if version is not None:
        table = Table(title=f"{name} version {rows[0]['version']}", title_justify="left", show_header=False)
        for key, value in rows[0].items():
            table.add_row(key, _shown(value))
        console.print(table)
        return 0
    table = Table("version", "aliases", "UAR", "WAR", "made", "decision", box=None, pad_edge=False)
    for row in rows:
        scores = (_percent(_number(row.get("uar"))), _percent(_number(row.get("war"))))
        table.add_row(row["version"], ", ".join(row["aliases"]), *scores, row["made"], row.get("decision", "-"))
    console.print(table)
    return 0


@models.command
def promote(
    name: str,
    version: str = "candidate",
    /,
    *,
    metric: Literal["uar", "war"] = "uar",
    features: str | None = None,
    list: str | None = None,
    strip: str = "",
    force: bool = False,
    reason: str = "",
    tracking_uri: str | None = None,
) -> int:
    """Make a version champion if it is better than the present one on the same evaluation data; else say why not.

    Parameters
    ----------
    name
        Of the registered model.
    version
        A number, or candidate.
    metric
        What decides.
    features
        Score both versions now, with the features of this table.
    list
        The clips and labels to score them on.
    strip
        Folder to take off the front of the list's paths.
    force
        Promote it whatever the scores; needs a reason.
    reason
        Kept with the decision.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    """
    from rich.console import Console

    from pthnet.errors import ModelError
    from tasks.champion import Decision, judge, settle

    if force and not reason:
        raise ModelError("--force needs a --reason: it is kept with the version")
    if (features is None) != (list is None):
        raise ModelError("scoring needs both --features and --list")
    client = _client(tracking_uri)
    number = str(_version(client, name, version).version)
    if features is not None and list is not None:
        _score(client, name, number, features, list, strip, tracking_uri)

    if force:
        decision = Decision(True, f"champion: promoted by hand: {reason}")
    else:
        judged = judge(client, name, number, metric=metric)
        decision = Decision(judged.champion, f"{judged.reason}; {reason}" if reason else judged.reason)
    settle(client, name, number, decision)
    Console(highlight=False).print(f"{name} version {number}: {decision.reason}", soft_wrap=True, markup=False)
    return 0 if decision.champion else 1


@models.command
def rollback(name: str, /, *, reason: str = "", tracking_uri: str | None = None) -> int:
    """Return to the champion before the present one.

    Parameters
    ----------
    name
        Of the registered model.
    reason
        Kept with both versions.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    """
    from tasks.champion import roll_back

    before, after = roll_back(_client(tracking_uri), name, reason)
    print(f"{name}: champion is version {after} again, version {before} was")
    return 0


@models.command
def compare(name: str, first: str, second: str, /, *, tracking_uri: str | None = None, json: bool = False) -> int:
    """Compare two versions: scores, data, settings, and what would be decided.

    Parameters
    ----------
    name
        Of the registered model.
    first
        Version number, champion or candidate.
    second
        What to compare it with, likewise.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    json
        Print JSON.
    """
    from rich.console import Console
    from rich.table import Table

    client = _client(tracking_uri)
    rows = [_described(client, _version(client, name, version)) for version in (first, second)]
    runs = [_params(client, row["run_id"]) for row in rows]
    facts = {key: [row.get(key) for row in rows] for key in ("version", "made", *COMPARED)}
    facts |= {f"param {key}": [run.get(key) for run in runs] for key in sorted({*runs[0], *runs[1]})}
    same = rows[0].get("evaluation_data") is not None and len(set(facts["evaluation_data"])) == 1
    differing = {key: values for key, values in facts.items() if values[0] != values[1] or key in ("uar", "war")}
    if json:
        print(json_module.dumps({"same_evaluation_data": same, "differing": differing}))
        return 0
    console = Console(highlight=False)
    table = Table("", first, second, title=f"{name}: what differs", title_justify="left")
    for key, values in differing.items():
        cells = [_percent(_number(value)) if key in ("uar", "war") else _shown(value) for value in values]
        table.add_row(key, *cells)
    console.print(table)
    console.print("scored on the same data" if same else "NOT scored on the same data: the scores cannot be compared")
    return 0


def _client(tracking_uri: str | None) -> Any:
    from tasks.model_source import registry_uri
    from tasks.tracking import quiet

    quiet()
    from mlflow import MlflowClient

    uri = registry_uri(tracking_uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _version(client: Any, name: str, version: str) -> Any:
    from mlflow.exceptions import MlflowException

    from pthnet.errors import ModelError

    try:
        if version.isdigit():
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        raise ModelError(f"{name} has no version {version}: {str(error).splitlines()[0]}") from error


def _versions(client: Any, name: str) -> list[Any]:
    from pthnet.errors import ModelError

    found = client.search_model_versions(f"name='{_quoted(name)}'")
    if not found:
        raise ModelError(f"there is no registered model {name}; pthnet models list names those there are")
    return sorted(found, key=lambda each: -int(each.version))


def _quoted(name: str) -> str:
    return name.replace("'", "\\'")


def _described(client: Any, version: Any) -> dict[str, Any]:
    import time

    aliases = client.get_registered_model(version.name).aliases
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.creation_timestamp / 1000))
    return {
        "version": str(version.version),
        "aliases": [alias for alias, number in aliases.items() if str(number) == str(version.version)],
        "made": made,
        "run_id": version.run_id,
        **version.tags,
    }


def _params(client: Any, run_id: str | None) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_run(run_id).data.params) if run_id else {}
    except MlflowException:
        return {}  # the run was deleted, the version lives on


def _score(
    client: Any, name: str, version: str, features: str, path: str, strip: str, tracking_uri: str | None
) -> None:
    """Score the version and the champion on one list, and keep the scores as tags of both."""
    from tasks.champion import holder
    from tasks.model_source import registry_uri
    from workflows.evaluate import score_model

    champion = holder(client, name)
    for number in dict.fromkeys([version, *([str(champion.version)] if champion else [])]):
        found = score_model(
            f"models:/{name}/{number}", features, path, strip=strip, tracking_uri=registry_uri(tracking_uri)
        )
        pooled = found["systems"]["fused"]["pooled"]
        tags = {"uar": repr(pooled["uar"]), "war": repr(pooled["war"]), "evaluation_data": found["evaluation_data"]}
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)


def _aliases(aliases: dict[str, str]) -> dict[str, str | None]:
    return {alias: aliases.get(alias) for alias in ("champion", "candidate")}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _shown(value: Any) -> str:
    from rich.markup import escape

    return "-" if value is None else escape(", ".join(value) if isinstance(value, (tuple, list)) else str(value))
