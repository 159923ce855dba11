"""The composite micro-expression benchmark (CASME II, SMIC, SAMM; MEGC 2019): classes and HTNet's published scores."""

import re
from dataclasses import dataclass

CLASSES = ("negative", "positive", "surprise")  # label index in the combined CSV
SUBJECTS = {"CASME II": 24, "SMIC": 16, "SAMM": 28}
SAMPLES = {"CASME II": (88, 32, 25), "SMIC": (70, 51, 43), "SAMM": (92, 26, 15)}  # by class; 442 in all
FULL = "full"


@dataclass(frozen=True)
class PublishedScore:
    """UF1 and UAR of the paper, fractions; each subject's epoch was chosen on that subject's own test samples."""

    uf1: float
    uar: float


HTNET_PUBLISHED = {
    FULL: PublishedScore(0.8603, 0.8475),
    "SMIC": PublishedScore(0.8049, 0.7905),
    "CASME II": PublishedScore(0.9532, 0.9516),
    "SAMM": PublishedScore(0.8131, 0.8124),
}


def dataset_title(name: str) -> str:
    """The usual name of a data set ("casme2", "CASME_II" -> "CASME II"); a name that is not known stays as it is."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return {"casme2": "CASME II", "casmeii": "CASME II", "smic": "SMIC", "smichs": "SMIC", "samm": "SAMM"}.get(
        plain, name
    )


def dataset_of_subject(subject: str) -> str:
    """The data set that names its subjects like this: "sub01" CASME II, "s01" SMIC, "006" SAMM, else "unknown"."""
    for pattern, title in ((r"sub\d+", "CASME II"), (r"s\d+", "SMIC"), (r"\d+", "SAMM")):
        if re.fullmatch(pattern, subject, re.IGNORECASE):
            return title
    return "unknown"
