"""One line per event, for people or for machines: plain text, or JSON lines when PTHNET_LOG=json.

Every line carries the run's id, which a scheduler or a job hands to what it starts in PTHNET_RUN_ID.
"""

import json
import logging
import os
import secrets
import sys
import time
from typing import Any, Literal, TextIO

Style = Literal["text", "json"]
STYLE_VARIABLE = "PTHNET_LOG"
RUN_VARIABLE = "PTHNET_RUN_ID"
_KNOWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as `extra`; once imported, Ray adds underscored values of its own to every record."""
    return {key: value for key, value in vars(record).items() if key not in _KNOWN and not key.startswith("_")}


class JsonLines(logging.Formatter):
    """A record as one JSON object: time (UTC), level, run_id, event, and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """A record for a terminal: time, event, then name=value of whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, a traceback below it where there is one."""
        extra = {key: value for key, value in _extra(record).items() if key != "run_id"}
        text = " ".join(
            [
                time.strftime("%H:%M:%S", time.localtime(record.created)),
                record.getMessage(),
                *(f"{key}={value}" for key, value in extra.items() if value is not None),
            ]
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def logger(
    name: str = "pthnet", *, run_id: str | None = None, style: Style | None = None, stream: TextIO | None = None
) -> "logging.LoggerAdapter[logging.Logger]":
    """A logger whose every line carries the run's id.

    Parameters
    ----------
    name
        Of the logger; asked for again, its output is set anew.
    run_id
        None takes PTHNET_RUN_ID, else makes one.
    style
        None takes PTHNET_LOG, else "text".
    stream
        None writes to standard error.
    """
    found = logging.getLogger(name)
    found.setLevel(logging.INFO)
    found.propagate = False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if (style or os.environ.get(STYLE_VARIABLE)) == "json" else PlainLines())
    found.handlers = [handler]
    return _WithRun(found, {"run_id": run_id or os.environ.get(RUN_VARIABLE) or new_run_id()})


def new_run_id() -> str:
    """A readable id that sorts by time: 20260102-030405-1a2b."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class _WithRun(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs
