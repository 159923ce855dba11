"""Log lines carry their run, for people and for machines."""

import io
import json

import pytest

from cluster.logs import logger


def test_a_json_line_holds_the_event_the_run_and_its_values() -> None:
    out = io.StringIO()
    logger("test.json", run_id="run-1", style="json", stream=out).info("committed", extra={"rows": 5})
    line = json.loads(out.getvalue())
    assert {key: line[key] for key in ("level", "event", "run_id", "rows")} == {
        "level": "info",
        "event": "committed",
        "run_id": "run-1",
        "rows": 5,
    }


def test_a_plain_line_is_short_and_an_error_keeps_its_traceback() -> None:
    out = io.StringIO()
    log = logger("test.plain", run_id="run-1", style="text", stream=out)
    log.info("committed", extra={"rows": 5})
    assert out.getvalue().split(" ", 1)[1] == "committed rows=5\n"
    try:
        raise ValueError("broken clip")
    except ValueError:
        log.exception("lost")
    assert "ValueError: broken clip" in out.getvalue()


def test_the_run_and_the_style_come_from_whoever_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHNET_RUN_ID", "given")
    monkeypatch.setenv("PTHNET_LOG", "json")
    out = io.StringIO()
    logger("test.given", stream=out).info("hello", extra={"run_id": "own"})
    logger("test.given", stream=out).info("hello")
    assert [json.loads(line)["run_id"] for line in out.getvalue().splitlines()] == ["own", "given"]
