"""What MLflow is told about a training: a run, with a nested one a direction and fold. Never a credential."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pthnet.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TAG = "pthnet.run"


def tracking_uri(given: str | None, out: str) -> str:
    """Where runs are tracked: the address given, MLFLOW_TRACKING_URI, else a SQLite file below `out`.

    Raises
    ------
    ModelError
        When `out` is remote and nothing is named: a SQLite file needs a local folder.
    """
    named = given or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if "://" in out:
        raise ModelError(
            f"{out} is no local folder, so MLflow's SQLite file cannot lie there; name --tracking-uri, or set "
            "MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{Path(out).resolve()}/mlflow.db"


def git_commit(directory: str | Path = ".") -> str | None:
    """Commit of the checkout that holds `directory`, or None outside one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=directory, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


class Tracker:
    """A connection to MLflow. Slow to make (it migrates its database): make it while something else runs.

    Parameters
    ----------
    uri : str
        Of the tracking server or database.
    experiment : str
    artifacts : str, optional
        Where a new experiment keeps them when `uri` is a local database; a server has its own place.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None) -> None:
        quiet()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri = uri
        try:
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            artifacts = artifacts if uri.startswith("sqlite:") else None
            self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
        except MlflowException as error:
            raise ModelError(f"MLflow at {uri.split('@')[-1]} does not answer: {str(error).splitlines()[0]}") from error

    def begin(self, name: str, key: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Run id of the run with this key (where its files lie); begun now, or by an interrupted command before."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{RUN_TAG}` = '{key}'", max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            self.client.set_terminated(run_id, "RUNNING")
            return run_id
        full = {
            **tags,
            RUN_TAG: key,
            "mlflow.runName": name,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "pthnet",
        }
        if parent:
            full["mlflow.parentRunId"] = parent
        if commit := git_commit():
            full["mlflow.source.git.commit"] = commit
        return str(self.client.create_run(self.experiment_id, tags=full).info.run_id)

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Parameters of a run; long ones are cut to what MLflow takes."""
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in values.items()])

    def history(self, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Per-epoch metrics: every number of the records but `epoch`, which is the step; what is there stays."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        there = {metric.step for metric in self.client.get_metric_history(run_id, "loss")}
        records = [record for record in records if record["epoch"] not in there]
        metrics = [
            Metric(key, float(value), now, int(record["epoch"]))
            for record in records
            for key, value in record.items()
            if key != "epoch" and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), 1000):  # the most one call takes
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        """Final metrics of a run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in values.items()])

    def figures(self, run_id: str, figures: Mapping[str, "Figure"]) -> None:
        """Figures as PNG files under figures/."""
        for name, figure in figures.items():
            self.client.log_figure(run_id, figure, f"figures/{name}.png")

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run."""
        self.client.set_terminated(run_id, status)


@contextmanager
def at(uri: str) -> Iterator[None]:
    """Let MLflow's module-level functions speak to `uri`; afterwards they and the environment are as before."""
    quiet()
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        # MLflow writes its address into the environment, where a later training would take it for the user's.
        mlflow.set_tracking_uri(before[names[0]])  # type: ignore[arg-type]
        mlflow.set_registry_uri(before[names[1]])  # type: ignore[arg-type]
        for name in names:
            os.environ.pop(name, None)
            if (value := before[name]) is not None:
                os.environ[name] = value


def quiet() -> None:
    """Keep MLflow to warnings, without telemetry and without progress bars; call before it is imported."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is the command's
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
