"""One cron expression means the same to APScheduler and systemd as it does to cron."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cluster.cron import Cron
from cluster.errors import ClusterError

BERLIN = ZoneInfo("Europe/Berlin")


def following(expression: str, start: datetime, count: int = 3) -> list[str]:
    """The next times an expression fires, as APScheduler finds them."""
    trigger = Cron.parse(expression, "Europe/Berlin").trigger()
    times: list[str] = []
    moment = start
    for _ in range(count):
        found = trigger.get_next_fire_time(None, moment)
        assert found is not None
        times.append(found.strftime("%a %m-%d %H:%M"))
        moment = found + timedelta(seconds=1)
    return times


START = datetime(2026, 1, 1, 12, tzinfo=BERLIN)  # a Thursday


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * *", ["Fri 01-02 03:00", "Sat 01-03 03:00", "Sun 01-04 03:00"]),
        ("0 3 * * 0", ["Sun 01-04 03:00", "Sun 01-11 03:00", "Sun 01-18 03:00"]),
        ("0 3 * * 7", ["Sun 01-04 03:00", "Sun 01-11 03:00", "Sun 01-18 03:00"]),
        ("0 3 * * 1-5", ["Fri 01-02 03:00", "Mon 01-05 03:00", "Tue 01-06 03:00"]),
        ("0 3 * * fri-7", ["Fri 01-02 03:00", "Sat 01-03 03:00", "Sun 01-04 03:00"]),
        ("*/40 12 * * *", ["Thu 01-01 12:00", "Thu 01-01 12:40", "Fri 01-02 12:00"]),
        ("0 3 13 * 5", ["Fri 01-02 03:00", "Fri 01-09 03:00", "Tue 01-13 03:00"]),
        ("30 4 1,15 feb *", ["Sun 02-01 04:30", "Sun 02-15 04:30", "Mon 02-01 04:30"]),
        ("@weekly", ["Sun 01-04 00:00", "Sun 01-11 00:00", "Sun 01-18 00:00"]),
    ],
)
def test_it_fires_when_cron_would(expression: str, expected: list[str]) -> None:
    assert following(expression, START) == expected


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("0 3 * * *", ["*-*-* 03:00:00 Europe/Berlin"]),
        ("*/15 * * * *", ["*-*-* *:00,15,30,45:00 Europe/Berlin"]),
        ("5 4 * jan 1-2", ["Mon,Tue *-01-* 04:05:00 Europe/Berlin"]),
        ("0 3 13 * 5", ["*-*-13 03:00:00 Europe/Berlin", "Fri *-*-* 03:00:00 Europe/Berlin"]),
        ("* * * * *", ["*-*-* *:*:00 Europe/Berlin"]),
    ],
)
def test_systemd_is_told_the_same(expression: str, lines: list[str]) -> None:
    assert Cron.parse(expression, "Europe/Berlin").calendars() == lines


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("0 3 * *", "has 4 fields"),
        ("60 3 * * *", "minute takes 0-59"),
        ("0 24 * * *", "hour takes 0-23"),
        ("0 3 0 * *", "day of month takes 1-31"),
        ("0 3 * 13 *", "month takes 1-12"),
        ("0 3 * * 8", "weekday takes 0-7"),
        ("0 3 * * 5-1", "weekday"),
        ("*/0 * * * *", "minute"),
        ("a * * * *", "found 'a'"),
        ("@never", "has 1 fields"),
    ],
)
def test_a_wrong_expression_names_its_field(expression: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cron.parse(expression)


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ClusterError, match="Europe/Berlin"):
        Cron.parse("@daily", "Mars/Olympus")
