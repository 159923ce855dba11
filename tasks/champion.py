"""Who is champion: the one place that decides which version of a model people get, and keeps why as its tags.

A version becomes champion when it beats the present one on the same evaluation data, by UAR with WAR as the tie-break,
or by WAR when that is asked for. Tags of a version: uar, war, evaluation_data (what it was scored on), decision and
decided_at (the last word on it), previous_champion (whom it replaced; a rollback returns there).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pthnet.errors import ModelError

CANDIDATE, CHAMPION = "candidate", "champion"
METRICS = ("uar", "war")


@dataclass(frozen=True)
class Decision:
    """Whether a version is champion now, and why, in a sentence."""

    champion: bool
    reason: str


def holder(client: Any, name: str, alias: str = CHAMPION) -> Any | None:
    """The version (an MLflow ModelVersion) that holds an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None  # no such alias yet


def scores_of(version: Any, metric: str = "uar") -> tuple[float, float] | None:
    """Fractions (metric, the other one) from a version's tags; None where it was never scored."""
    other = METRICS[1 - METRICS.index(metric)]
    try:
        found = float(version.tags[metric]), float(version.tags[other])
    except (KeyError, ValueError):
        return None
    return found if all(map(isfinite, found)) else None


def judge(
    client: Any,
    name: str,
    version: str,
    *,
    metric: str = "uar",
    score_champion: Callable[[str], tuple[float, float] | None] | None = None,
) -> Decision:
    """Whether a version should be champion.

    Parameters
    ----------
    client
        MlflowClient.
    name, version
        The version, its scores in its tags.
    metric
        What decides: "uar" or "war".
    score_champion
        Scores (uar, war) of a given version on the evaluation data of the new one; None when it cannot read them. Asked
        only when the champion was scored on other data.
    """
    if metric not in METRICS:
        raise ModelError(f"a champion is chosen by {' or '.join(METRICS)}, not {metric!r}")
    champion = holder(client, name)
    if champion is None:
        return Decision(True, "champion: the first version")
    label = f"version {champion.version}"
    if str(champion.version) == version:
        return Decision(True, f"champion: {label} is champion already")
    new = client.get_model_version(name, version)
    scored = scores_of(new, metric)
    if scored is None:
        return Decision(False, "not champion: it was never scored; name --features and --list to score it")
    other = scores_of(champion, metric)
    if other is None or champion.tags.get("evaluation_data") != new.tags.get("evaluation_data"):
        if score_champion is None:
            return Decision(
                False,
                f"not champion: {label} was not scored on the same data; name --features and --list to score both",
            )
        found = score_champion(str(champion.version))
        if found is None:
            return Decision(
                False,
                f"not champion: {label} reads another extractor's features and cannot be compared on this data",
            )
        other = found if metric == "uar" else (found[1], found[0])
    shown = f"{metric.upper()} {100 * scored[0]:.2f} against {100 * other[0]:.2f} of {label} on the same data"
    return Decision(scored > other, f"champion: {shown}" if scored > other else f"not champion: {shown}")


def settle(client: Any, name: str, version: str, decision: Decision) -> None:
    """Move the alias if the decision says so, and keep the decision with the version."""
    present = holder(client, name)
    if decision.champion and (present is None or str(present.version) != version):
        if present is not None:
            client.set_model_version_tag(name, version, "previous_champion", str(present.version))
        client.set_registered_model_alias(name, CHAMPION, version)
    _note(client, name, version, decision.reason)


def roll_back(client: Any, name: str, reason: str = "") -> tuple[str, str]:
    """Return to the champion before the present one; both versions keep why. Returns (from, to).

    Raises
    ------
    ModelError
        When there is no champion, or none before it.
    """
    from mlflow.exceptions import MlflowException

    present = holder(client, name)
    if present is None:
        raise ModelError(f"{name} has no champion to roll back; promote a version")
    earlier = present.tags.get("previous_champion")
    if not earlier:
        raise ModelError(f"version {present.version} of {name} is the first champion: there is none to roll back to")
    try:
        client.get_model_version(name, earlier)
    except MlflowException:
        raise ModelError(
            f"version {earlier} of {name}, the champion before {present.version}, is deleted; promote another one"
        ) from None
    client.set_registered_model_alias(name, CHAMPION, earlier)
    why = f": {reason}" if reason else ""
    _note(client, name, str(present.version), f"rolled back to version {earlier}{why}")
    _note(client, name, earlier, f"champion: rolled back from version {present.version}{why}")
    return str(present.version), earlier


def _note(client: Any, name: str, version: str, reason: str) -> None:
    client.set_model_version_tag(name, version, "decision", reason)
    client.set_model_version_tag(name, version, "decided_at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
