"""Flow images and labels for leaving one subject out, read from the published layouts and checked before training."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pthnet.flow import FALLBACK_LANDMARKS, SIZE, Axes, four_parts
from pthnet.micro_expressions import CLASSES, dataset_of_subject, dataset_title
from storage.errors import StorageError
from tasks.micro_list import class_index, read_micro_list, refuse


@dataclass(frozen=True)
class MicroSet:
    """N samples in memory.

    Attributes
    ----------
    names, datasets, subjects
        str [N]; a subject is "<data set>/<sub>".
    labels
        int64 [N].
    images
        uint8 [N, 28, 28, 3], channels strain, v, u; whole faces as read.
    """

    names: NDArray[np.str_]
    datasets: NDArray[np.str_]
    subjects: NDArray[np.str_]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]

    def digest(self) -> str:
        """Fingerprint of everything in it; equal sets give equal digests."""
        parts = hashlib.sha256()
        for array in (self.names, self.subjects, self.labels, self.images):
            parts.update(np.ascontiguousarray(array).tobytes())
        return parts.hexdigest()[:16]


@dataclass(frozen=True)
class Fold:
    """One subject left out: rows to train on and rows to test."""

    number: int
    subject: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def leave_one_out(subjects: NDArray[np.str_]) -> list[Fold]:
    """One fold for every subject, in the order of their first samples."""
    rows = np.arange(len(subjects))
    order = list(dict.fromkeys(subjects.tolist()))
    if len(order) < 2:
        raise StorageError(f"leaving one subject out needs at least two subjects, found {', '.join(order) or 'none'}")
    return [Fold(n, name, rows[subjects != name], rows[subjects == name]) for n, name in enumerate(order)]


def refuse_leakage(folds: Iterable[Fold], subjects: NDArray[np.str_], samples: MicroSet | None = None) -> None:
    """StorageError when a fold trains on its own test subject, or two people share one and the same image."""
    problems: dict[str, list[str]] = {}
    for fold in folds:
        if shared := sorted(set(subjects[fold.train]) & set(subjects[fold.test])):
            problems.setdefault("trained on the subjects they test", []).append(
                f"fold {fold.number + 1}: {', '.join(shared)}"
            )
    if samples is not None:
        seen: dict[bytes, int] = {}
        for row, image in enumerate(samples.images):
            first = seen.setdefault(image.tobytes(), row)
            if subjects[first] != subjects[row]:
                pair = " and ".join(f"{samples.names[at]} of {subjects[at]}" for at in (first, row))
                problems.setdefault("one image under two subjects", []).append(pair)
    headline = "test subjects leak into training, and a score from such folds says nothing"
    refuse(problems, f"{headline}; keep each sample under one subject, and each subject on one side")


def read_published(flow: Path, combined: Path) -> MicroSet:
    """Read `<sub>_<file> .png` for every row of the combined CSV.

    Raises
    ------
    StorageError
        Listing the samples whose image is missing, unreadable, there twice, or not 28 x 28.
    """
    samples = read_micro_list(combined)
    problems: dict[str, list[str]] = {}
    images = []
    for sample in samples:
        places = [p for p in (flow / f"{sample.name} .png", flow / f"{sample.name}.png") if p.exists()]
        if len(places) > 1:
            problems.setdefault("there twice, with and without the space", []).append(sample.name)
        image = _read(places[0] if places else flow / f"{sample.name} .png", problems)
        images.append(image)
    refuse(problems, f"{flow}: flow images cannot be used; `pthnet flow` makes them")
    titles = [dataset_title(sample.dataset) for sample in samples]
    return MicroSet(
        np.array([s.name for s in samples]),
        np.array(titles),
        np.array([f"{title}/{s.sub}" for title, s in zip(titles, samples, strict=True)]),
        np.array([s.label for s in samples], np.int64),
        np.stack([image for image in images if image is not None]),
    )


def read_subject_folders(directory: Path) -> MicroSet:
    """Read `<sub>/u_test/<label>/*.png` of every subject and check `<sub>/u_train/<label>/*.png` against them.

    Raises
    ------
    StorageError
        When a subject's u_train holds one of its own samples, lacks or relabels others', or an image cannot be used.
    """
    homes = sorted(p for p in directory.iterdir() if (p / "u_test").is_dir()) if directory.is_dir() else []
    if not homes:
        raise StorageError(
            f"{directory} holds no <subject>/u_test/<label>/*.png; for images that lie flat name the CSV with --csv"
        )
    problems: dict[str, list[str]] = {}
    found: dict[str, tuple[str, int, NDArray[np.uint8] | None]] = {}
    for home in homes:
        for path, label in _labelled(home / "u_test", problems):
            name = path.stem.strip()
            if name in found:
                problems.setdefault("in u_test of two subjects", []).append(f"{name} ({found[name][0]}, {home.name})")
                continue
            found[name] = (home.name, label, _read(path, problems))
    for home in homes:
        train = {path.stem.strip(): label for path, label in _labelled(home / "u_train", problems)}
        for name in (others := {n for n, (owner, _, _) in found.items() if owner != home.name}) - train.keys():
            problems.setdefault("missing from u_train", []).append(f"{home.name}: {name}")
        for name, label in train.items():
            if (name in found and found[name][0] == home.name) or name.startswith(f"{home.name}_"):
                problems.setdefault("subject leakage: own samples in u_train", []).append(f"{home.name}: {name}")
            elif name not in others:
                problems.setdefault("in u_train but in nobody's u_test", []).append(f"{home.name}: {name}")
            elif label != found[name][1]:
                problems.setdefault("another label in u_train than in u_test", []).append(f"{home.name}: {name}")
    refuse(problems, f"{directory}: the subject folders cannot be used")
    owners = [owner for owner, _, _ in found.values()]
    titles = [dataset_of_subject(owner) for owner in owners]
    return MicroSet(
        np.array(list(found)),
        np.array(titles),
        np.array([f"{title}/{owner}" for title, owner in zip(titles, owners, strict=True)]),
        np.array([label for _, label, _ in found.values()], np.int64),
        np.stack([image for _, _, image in found.values() if image is not None]),
    )


def _labelled(directory: Path, problems: dict[str, list[str]]) -> list[tuple[Path, int]]:
    pairs: list[tuple[Path, int]] = []
    if not directory.is_dir():
        problems.setdefault("missing", []).append(str(directory))
        return pairs
    for folder in sorted(p for p in directory.iterdir() if p.is_dir()):
        label = class_index(folder.name, CLASSES)
        if label is None:
            problems.setdefault("label folder is no class", []).append(str(folder))
        else:
            pairs += [(path, label) for path in sorted(folder.glob("*.png"))]
    twice = [name for name, count in Counter(path.stem.strip() for path, _ in pairs).items() if count > 1]
    if twice:
        problems.setdefault("more than once in one folder tree", []).extend(f"{directory}: {name}" for name in twice)
    return pairs


def _read(path: Path, problems: dict[str, list[str]]) -> NDArray[np.uint8] | None:
    if not path.exists():
        problems.setdefault("missing", []).append(path.name)
        return None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)  # blue, green, red = strain, v, u
    if image is None:
        problems.setdefault("unreadable", []).append(path.name)
        return None
    if image.shape != (SIZE, SIZE, 3):
        problems.setdefault(f"not {SIZE} x {SIZE}", []).append(f"{path.name} ({image.shape[1]} x {image.shape[0]})")
        return None
    return image.astype(np.uint8)


def read_landmarks(path: Path, names: Sequence[str]) -> NDArray[np.float64]:
    """Five landmarks of every named sample, [N, 5, 2] (x, y) in the 28 x 28 apex face.

    The CSV has the columns sub, filename_o, x0, y0, ... x4, y4: eyes, nose, mouth corners. A sample without a row
    gets the published fallback, as a face that was not found does.
    """
    columns = [f"{axis}{point}" for point in range(5) for axis in "xy"]
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = [name for name in ("sub", "filename_o", *columns) if name not in (rows.fieldnames or ())]
            if missing:
                raise StorageError(f"{path} lacks the columns {', '.join(missing)}")
            found = {
                f"{row['sub'].strip()}_{row['filename_o'].strip()}": np.array([float(row[c]) for c in columns]).reshape(
                    5, 2
                )
                for row in rows
            }
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} cannot be read as landmarks: {error}; expected numbers in {', '.join(columns)}"
        ) from error
    if not set(found) & set(names):
        raise StorageError(
            f"{path} holds landmarks of none of the samples; its sub and filename_o must be those of the list"
        )
    return np.stack([found.get(name, FALLBACK_LANDMARKS) for name in names])


def network_input(
    images: NDArray[np.uint8],
    landmarks: NDArray[np.float64] | None = None,
    axes: Axes = "published",
    *,
    crop: bool = True,
) -> NDArray[np.float32]:
    """Flow images uint8 [N, 28, 28, 3] -> float32 [N, 3, 28, 28], 0-255: their four parts, or all unless `crop`."""
    if crop:
        where = landmarks if landmarks is not None else np.broadcast_to(FALLBACK_LANDMARKS, (len(images), 5, 2))
        images = np.stack([four_parts(image, points, axes) for image, points in zip(images, where, strict=True)])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
