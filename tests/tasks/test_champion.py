"""Who becomes champion, who does not and why, and the way back; on a registry in a SQLite file."""

from collections.abc import Iterator
from typing import Any

import pytest

from pthnet.errors import ModelError
from tasks.champion import holder, judge, roll_back, settle
from tasks.tracking import quiet

NAME = "faces"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def client(registry: str) -> Iterator[Any]:
    quiet()
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=registry, registry_uri=registry)
    found.create_registered_model(NAME)
    yield found
    found.delete_registered_model(NAME)


def version(client: Any, uar: float | None, war: float = 0.5, data: str = "d1") -> str:
    tags = {} if uar is None else {"uar": repr(uar), "war": repr(war), "evaluation_data": data}
    return str(client.create_model_version(NAME, "/nowhere", tags=tags).version)


def settled(client: Any, number: str, **options: Any) -> bool:
    decision = judge(client, NAME, number, **options)
    settle(client, NAME, number, decision)
    assert client.get_model_version(NAME, number).tags["decision"] == decision.reason
    return decision.champion


def champion(client: Any) -> str:
    return str(holder(client, NAME).version)


def test_the_first_version_is_champion_and_only_a_better_one_takes_its_place(client: Any) -> None:
    assert settled(client, version(client, 0.50))
    assert not settled(client, version(client, 0.49, war=0.9))
    assert not settled(client, version(client, 0.50))
    assert champion(client) == "1"
    assert settled(client, version(client, 0.50, war=0.51))
    assert settled(client, version(client, 0.52))
    assert champion(client) == "5"
    assert "UAR 52.00 against 50.00 of version 4" in client.get_model_version(NAME, "5").tags["decision"]
    assert "not champion: UAR 49.00" in client.get_model_version(NAME, "2").tags["decision"]


def test_the_metric_can_be_chosen(client: Any) -> None:
    settled(client, version(client, 0.50, war=0.50))
    other = version(client, 0.40, war=0.60)
    assert not judge(client, NAME, other).champion
    assert judge(client, NAME, other, metric="war").champion
    with pytest.raises(ModelError, match="uar or war"):
        judge(client, NAME, other, metric="f1")


def test_scores_on_other_data_are_not_compared(client: Any) -> None:
    settled(client, version(client, 0.10, data="d1"))
    new = version(client, 0.90, data="d2")
    refused = judge(client, NAME, new)
    assert not refused.champion
    assert "not scored on the same data" in refused.reason
    assert "another extractor" in judge(client, NAME, new, score_champion=lambda _: None).reason
    assert not judge(client, NAME, new, score_champion=lambda _: (0.95, 0.9)).champion
    assert judge(client, NAME, new, score_champion=lambda _: (0.85, 0.9)).champion


def test_a_version_without_scores_does_not_replace_a_champion(client: Any) -> None:
    settled(client, version(client, 0.1))
    assert "never scored" in judge(client, NAME, version(client, None)).reason
    assert "never scored" in judge(client, NAME, version(client, float("nan"))).reason


def test_a_rollback_returns_to_the_champion_before_and_says_why(client: Any) -> None:
    for uar in (0.1, 0.2, 0.3):
        assert settled(client, version(client, uar))
    assert roll_back(client, NAME, "it shouts at children") == ("3", "2")
    assert champion(client) == "2"
    assert "it shouts at children" in client.get_model_version(NAME, "3").tags["decision"]
    assert roll_back(client, NAME) == ("2", "1")
    with pytest.raises(ModelError, match="none to roll back to"):
        roll_back(client, NAME)


def test_a_rollback_to_a_deleted_version_is_refused(client: Any) -> None:
    for uar in (0.1, 0.2):
        settled(client, version(client, uar))
    client.delete_model_version(NAME, "1")
    with pytest.raises(ModelError, match="deleted"):
        roll_back(client, NAME)
    assert champion(client) == "2"
