"""The combined CSV of the micro-expression benchmark: one row a sample, `dataset,sub,filename_o,label,...`."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pthnet.micro_expressions import CLASSES
from storage.errors import StorageError

REQUIRED = ("dataset", "sub", "filename_o", "label")
SHOWN = 10


@dataclass(frozen=True)
class MicroSample:
    """One row: who, which clip, what is felt, where motion begins and peaks (frame numbers or names; "" unknown)."""

    dataset: str
    sub: str
    file: str
    label: int
    onset: str = ""
    apex: str = ""

    @property
    def name(self) -> str:
        """Stem of the sample's flow image."""
        return f"{self.sub}_{self.file}"

    @property
    def subject(self) -> str:
        """The person: two data sets may number their subjects alike."""
        return f"{self.dataset}/{self.sub}"


def read_micro_list(path: Path, classes: tuple[str, ...] = CLASSES) -> list[MicroSample]:
    """Read the combined CSV; labels are class indices or names, other columns are ignored.

    Raises
    ------
    StorageError
        When columns are missing, a label is no class, or a sample is listed twice; the message lists them.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = [name for name in REQUIRED if name not in (rows.fieldnames or ())]
            if missing:
                present = ", ".join(rows.fieldnames or ()) or "none"
                raise StorageError(f"{path} lacks the columns {', '.join(missing)}; it has {present}")
            found = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StorageError(f"{path} cannot be read as a CSV: {error}") from error
    problems: dict[str, list[str]] = {}
    samples = []
    for line, row in enumerate(found, start=2):
        values = {
            key: (value or "").strip()
            for key, value in row.items()
            if isinstance(key, str) and not isinstance(value, list)
        }
        label = class_index(values["label"], classes)
        if label is None:
            problems.setdefault(f"label is none of 0-{len(classes) - 1}, {', '.join(classes)}", []).append(
                f"line {line}: {values['label']!r}"
            )
        elif not (values["dataset"] and values["sub"] and values["filename_o"]):
            problems.setdefault("dataset, sub or filename_o is empty", []).append(f"line {line}")
        else:
            samples.append(
                MicroSample(
                    values["dataset"],
                    values["sub"],
                    values["filename_o"],
                    label,
                    values.get("onset", ""),
                    values.get("apex", ""),
                )
            )
    counts = Counter(sample.name for sample in samples)
    if repeated := [name for name, count in counts.items() if count > 1]:
        problems["listed more than once (one flow image cannot be two samples)"] = repeated
    refuse(problems, f"{path}: the list cannot be used")
    if not samples:
        raise StorageError(f"{path} lists no sample; expected one row each")
    return samples


def class_index(text: str, classes: tuple[str, ...]) -> int | None:
    """Index of a class given by number ("1", "1.0") or name, None when it is neither."""
    lowered = [name.lower() for name in classes]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < len(classes) else None


def refuse(problems: dict[str, list[str]], title: str) -> None:
    """Raise one StorageError that lists every kind of problem with its first samples; nothing when there is none."""
    if not problems:
        return
    lines = [title]
    for kind, names in problems.items():
        shown = ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        lines.append(f"  {kind} ({len(names)}): {shown}")
    raise StorageError("\n".join(lines))
