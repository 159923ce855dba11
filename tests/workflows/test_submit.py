"""The options of `pthnet submit` that are settled before a cluster is asked."""

from pathlib import Path

import pytest
from cyclopts import App

from cluster.errors import ClusterError
from workflows import submit as submit_file
from workflows.submit import pairs, submit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": ["AWS_SECRET_ACCESS_KEY=abc12345"]}, "--secret AWS_SECRET_ACCESS_KEY"),
        ({"env": ["MLFLOW_TRACKING_TOKEN"]}, "--secret"),
        ({"resource": ["decode=many"]}, "amount"),
        ({"runtime_env": Path("/nowhere.yaml")}, "not there"),
        ({"address": "http://127.0.0.1:1"}, "--address"),
    ],
)
def test_what_a_user_can_fix_is_said_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message) as refused:
        submit("extract", "videos", **options)  # type: ignore[arg-type]
    assert "abc12345" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_options_before_the_dashes_are_submits_and_all_after_them_the_workflows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App()
    app.command(submit)
    _, bound, _ = app.parse_args(
        [
            "submit",
            "--address",
            "http://head",
            "--env",
            "A=1",
            "--env",
            "B=2",
            "--detach",
            "--",
            "extract",
            "v",
            "--env",
            "x",
            "--",
            "y",
        ]
    )
    assert bound.args == ("extract", "v", "--env", "x", "--", "y")
    assert bound.kwargs == {"address": "http://head", "env": ["A=1", "B=2"], "detach": True}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert pairs(["A=b=c"], "--env") == {"A": "b=c"}


@pytest.mark.parametrize(("typed", "answer"), [(["x", "S"], "stop"), (["d"], "detach"), (["go"], "go on")])
def test_ctrl_c_asks_until_it_gets_an_answer(typed: list[str], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert submit_file.ask() == answer


def test_a_second_ctrl_c_leaves_the_job_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert submit_file.ask() == "detach"
