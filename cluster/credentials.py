"""Keep credentials out of job specifications, metadata and logs: a job names them, the cluster holds them.

Ray stores a job's entrypoint and environment in clear and hands them to everyone who may list jobs.
"""

import os
import re
from collections.abc import Iterable, Mapping

from cluster.errors import ClusterError

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|PRIVATE_?KEY|ACCESS_?KEY|API_?KEY|ACCOUNT_?KEY|SAS_?KEY|CONNECTION_STRING",
    re.IGNORECASE,
)
# Names that match above and yet only say where a secret is kept, or how it is asked for.
_HARMLESS = re.compile(r"(_PATH|_FILE|_URL|_ENABLED|_MODE|_PARALLELISM)$|^TOKENIZERS_", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s:@'\"]+:[^/\s@'\"]+@", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; shorter values would match by accident
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a credential."""
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS.search(name)


def refuse_secrets(variables: Iterable[str]) -> None:
    """Refuse environment variables that would carry a credential into a job specification.

    Raises
    ------
    ClusterError
        Names the variables (never their values) and where to put them instead.
    """
    found = sorted(name for name in variables if is_secret_name(name))
    if found:
        names = ", ".join(found)
        raise ClusterError(
            f"{names} would be stored in clear in the job's specification; set it in the cluster's own environment "
            f"(Kubernetes: a secret by envFrom) and pass --secret {found[0]} to have the job check that it is there"
        )


def refuse_secret_text(text: str, environment: Mapping[str, str] | None = None) -> None:
    """Refuse text that holds a URL password or the value of a credential in this process's environment.

    Parameters
    ----------
    text
        Anything that will be stored with the job: its command, environment and metadata.
    environment
        Where to look for credentials; None reads `os.environ`.

    Raises
    ------
    ClusterError
        Says which variable's value was found, never the value.
    """
    if _URL_PASSWORD.search(text):
        raise ClusterError(
            "the job names a URL with a password in it (scheme://user:password@host); leave it out and set "
            "it in the cluster's own environment"
        )
    for name, value in (os.environ if environment is None else environment).items():
        if is_secret_name(name) and len(value) >= _SHORTEST_SECRET and value in text:
            raise ClusterError(
                f"the job's command or environment holds the value of {name}; leave it out and set {name} in the "
                "cluster's own environment (Kubernetes: a secret by envFrom)"
            )


def redact(text: str) -> str:
    """The text with URL passwords replaced, for printing what others submitted."""
    return _URL_PASSWORD.sub(r"\1***@", text)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of environment variables the job will need, checked to be names and not assignments.

    Raises
    ------
    ClusterError
        A name that holds anything but letters, digits and underscores; the part after `=` is not repeated.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if not _VARIABLE.fullmatch(name):
            raise ClusterError(
                f"--secret takes the name of an environment variable of the cluster, found {name.partition('=')[0]!r} "
                "followed by more; give the name alone, without a value"
            )
    return wanted
