"""Crontab expressions, read once and handed to APScheduler, systemd or Kubernetes with one meaning.

The meaning is cron's: weekday 0 and 7 are Sunday, and when both the day of the month and the weekday are restricted a
day that fits either will do. (APScheduler counts weekdays from Monday and wants both to fit, so its `from_crontab` is
not used.)
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# (name, least, most, names of the values from the least on)
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("weekday", 0, 7, _DAYS),
)
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_PART = re.compile(r"(?P<first>\*|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Cron:
    """When something recurs.

    Attributes
    ----------
    minutes, hours, days, months, weekdays
        Values that fit, ascending; weekdays count from Sunday = 0.
    either_day
        Both days and weekdays were restricted: a day that fits either will do.
    expression
        The five fields as written, macros written out.
    timezone
        IANA name.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    either_day: bool
    expression: str
    timezone: str

    @classmethod
    def parse(cls, expression: str, timezone: str = "Etc/UTC") -> "Cron":
        """Read a crontab expression of five fields, or a macro such as @daily.

        Raises
        ------
        ClusterError
            Names the field and what it takes, or the unknown time zone.
        """
        text = _MACROS.get(expression.strip().lower(), expression.strip())
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ClusterError(
                f"cron expression {expression!r} has {len(parts)} fields and needs 5: minute hour day month weekday, "
                'as in "0 3 * * *" for 03:00 every day'
            )
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError):
            raise ClusterError(f"time zone {timezone!r} is unknown; give an IANA name such as Europe/Berlin") from None
        minutes, hours, days, months, weekdays = (
            _values(part, *field) for part, field in zip(parts, _FIELDS, strict=True)
        )
        return cls(
            minutes=minutes,
            hours=hours,
            days=days,
            months=months,
            weekdays=tuple(sorted({day % 7 for day in weekdays})),
            either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
            expression=" ".join(parts),
            timezone=timezone,
        )

    def trigger(self) -> "BaseTrigger":
        """The APScheduler trigger that fires when this expression fits."""
        from apscheduler.triggers.combining import OrTrigger
        from apscheduler.triggers.cron import CronTrigger

        time = {"minute": _joined(self.minutes), "hour": _joined(self.hours), "month": _joined(self.months)}
        day = {"day": _joined(self.days)}
        weekday = {"day_of_week": ",".join(_DAYS[value] for value in self.weekdays)}
        zone = ZoneInfo(self.timezone)
        if self.either_day:
            return OrTrigger([CronTrigger(**time, **which, timezone=zone) for which in (day, weekday)])
        return CronTrigger(**time, **day, **weekday, timezone=zone)

    def calendars(self) -> list[str]:
        """systemd OnCalendar lines, which together fire when this expression fits."""
        every_day, every_weekday = len(self.days) == 31, len(self.weekdays) == 7
        days = "*" if every_day else ",".join(f"{value:02}" for value in self.days)
        months = "*" if len(self.months) == 12 else ",".join(f"{value:02}" for value in self.months)
        weekdays = "" if every_weekday else ",".join(_DAYS[value].capitalize() for value in self.weekdays) + " "
        hours = "*" if len(self.hours) == 24 else ",".join(f"{value:02}" for value in self.hours)
        minutes = "*" if len(self.minutes) == 60 else ",".join(f"{value:02}" for value in self.minutes)
        time = f"{hours}:{minutes}:00 {self.timezone}"
        if self.either_day:
            return [f"*-{months}-{days} {time}", f"{weekdays}*-{months}-* {time}"]
        return [f"{weekdays}*-{months}-{days} {time}"]


def _values(part: str, name: str, least: int, most: int, names: tuple[str, ...]) -> tuple[int, ...]:
    found: set[int] = set()
    for item in part.split(","):
        match = _PART.fullmatch(item.lower())
        if match is None:
            raise _wrong(name, item, least, most)
        step = int(match["step"]) if match["step"] else 1
        if match["first"] == "*":
            first, last = least, 6 if name == "weekday" else most
        else:
            first = _value(match["first"], item, name, least, most, names)
            if match["last"]:
                last = _value(match["last"], item, name, least, most, names)
            else:
                last = most if match["step"] else first
        if first > last or step < 1 or (match["first"] == "*" and match["last"]):
            raise _wrong(name, item, least, most)
        found.update(range(first, last + 1, step))
    return tuple(sorted(found))


def _value(text: str, item: str, name: str, least: int, most: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + least
    if text.isdecimal() and least <= int(text) <= most:
        return int(text)
    raise _wrong(name, item, least, most)


def _wrong(name: str, item: str, least: int, most: int) -> ClusterError:
    return ClusterError(f"{name} takes {least}-{most}, *, lists, ranges and steps such as */15; found {item!r}")


def _joined(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
