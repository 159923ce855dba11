"""Hand a schedule to what a machine has anyway: cron or systemd."""

import shlex
from collections.abc import Sequence

from cluster.cron import Cron


def crontab(when: Cron, argv: Sequence[str], directory: str) -> str:
    """Lines for `crontab -e`. CRON_TZ is read by cronie; Debian's cron uses the machine's zone, as the comment says."""
    # relative paths in the command mean what they mean here; cron turns a bare % into a newline
    command = f"cd {shlex.quote(directory)} && {shlex.join(argv)}".replace("%", r"\%")
    note = "# in a cron that does not know CRON_TZ (Debian's) the machine's own zone counts"
    return f"{note}\nCRON_TZ={when.timezone}\n{when.expression} {command}\n"


def systemd(when: Cron, argv: Sequence[str], name: str, directory: str) -> str:
    """A service and a timer for ~/.config/systemd/user or /etc/systemd/system, one after the other.

    systemd starts no oneshot service that still runs, and Persistent makes up once for times missed while the machine
    was off.
    """
    command = " ".join(_quoted(argument) for argument in argv)
    calendars = "\n".join(f"OnCalendar={line}" for line in when.calendars())
    return f"""\
# {name}.service
[Unit]
Description=pthnet: {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
WorkingDirectory={directory.replace("%", "%%")}
ExecStart={command}
Environment=PTHNET_LOG=json
KillMode=mixed
TimeoutStopSec=300

# {name}.timer (then: systemctl enable --now {name}.timer)
[Unit]
Description=pthnet: when {name} is due

[Timer]
{calendars}
Persistent=true

[Install]
WantedBy=timers.target
"""


def _quoted(argument: str) -> str:
    """An argument as systemd reads it: $ and % doubled, quoted where it holds anything else than plain characters."""
    doubled = argument.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return doubled if doubled and all(c.isalnum() or c in "-_./:=,@+%$" for c in doubled) else f'"{doubled}"'
