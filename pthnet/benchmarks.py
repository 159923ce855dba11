"""Public data sets and one's own: class names, folds, list files, published settings and scores, and who is seen.

The data sets themselves are not distributed here. Obtaining them, and keeping to their licences, is the user's duty.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pthnet.errors import ModelError

MODELS = ("forward", "reverse", "fused")


@dataclass(frozen=True)
class Fold:
    """One division into training and test clips, as two list files."""

    number: int
    train: str
    test: str


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How PTH-Net was trained; SGD, the learning rate times `factor` after each milestone (in epochs)."""

    epochs: int = 20
    milestones: tuple[int, ...] = (5, 10, 15)
    factor: float = 0.1
    learning_rate: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 32


@dataclass(frozen=True)
class PublishedScore:
    """A score from the paper, in percent; its epoch was chosen on the test clips."""

    view: str  # "whole frame" or "faces"
    model: str  # one of MODELS
    uar: float
    war: float


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set as its lists lay it out.

    Attributes
    ----------
    name : str
    classes : tuple of str
        In the order of the label index.
    folds : tuple of Fold
    schedule : Schedule
    schedule_published : bool
        False where the paper's settings are not known and FERV39k's stand in.
    scores : tuple of PublishedScore
        Empty where the paper's PTH-Net scores are not public.
    subject_pattern, recording_pattern : str
        Regular expressions, matched at the start of a clip's name, whose groups identify who is seen and which take it
        is ("" = the names do not tell). Two clips with the same recording are the same moment twice.
    note : str
        What a user must know about the lists.
    """

    name: str
    classes: tuple[str, ...]
    folds: tuple[Fold, ...]
    schedule: Schedule = field(default_factory=Schedule)
    schedule_published: bool = False
    scores: tuple[PublishedScore, ...] = ()
    subject_pattern: str = ""
    recording_pattern: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ModelError(f"{self.name}: a benchmark needs at least two classes, each once; found {self.classes}")
        if not self.folds:
            raise ModelError(f"{self.name}: a benchmark needs at least one fold; found none")
        for pattern in (self.subject_pattern, self.recording_pattern):
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ModelError(f"{self.name}: {pattern!r} is not a regular expression: {error}") from error
            if pattern and not groups:
                raise ModelError(
                    f"{self.name}: {pattern!r} needs a group, as (\\d+), around what identifies the subject"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def fold(self, number: int) -> Fold:
        """The fold of that number, counted from 1."""
        for fold in self.folds:
            if fold.number == number:
                return fold
        raise ModelError(f"{self.name} has folds 1 to {len(self.folds)}; found {number}")

    def subject(self, clip_id: str) -> str | None:
        """Who is seen in a clip (an actor, a participant, a dialogue), if its name tells."""
        return _key(self.subject_pattern, clip_id)

    def recording(self, clip_id: str) -> str | None:
        """Which take a clip shows, if its name tells; the same for the twins of one recording."""
        return _key(self.recording_pattern, clip_id)


@dataclass(frozen=True)
class Overlap:
    """What training and test clips have in common; each is something a test score does not say.

    Attributes
    ----------
    clips, recordings, subjects : tuple of str
        In both lists, sorted.
    clip_share, recording_share, subject_share : float
        Share of the test clips that they concern.
    """

    clips: tuple[str, ...]
    recordings: tuple[str, ...]
    subjects: tuple[str, ...]
    clip_share: float
    recording_share: float
    subject_share: float


def overlap(benchmark: Benchmark, train: Sequence[str], test: Sequence[str]) -> Overlap:
    """Clips, recordings and subjects that stand in both lists of a fold.

    Parameters
    ----------
    benchmark : Benchmark
    train, test : sequence of clip ids
    """
    shared: list[tuple[str, ...]] = []
    shares: list[float] = []
    for key in (str, benchmark.recording, benchmark.subject):
        seen = {key(clip) for clip in train} - {None}
        tested = [key(clip) for clip in test]
        common = seen.intersection(tested)
        shared.append(tuple(sorted(str(value) for value in common)))
        shares.append(sum(value in common for value in tested) / max(len(tested), 1))
    return Overlap(shared[0], shared[1], shared[2], shares[0], shares[1], shares[2])


def find_benchmark(name: str) -> Benchmark:
    """A public benchmark by its name; case, spaces, hyphens and underscores do not matter.

    Raises
    ------
    ModelError
        For an unknown name; lists the known ones.
    """
    for benchmark in BENCHMARKS:
        if _plain(benchmark.name) == _plain(name):
            return benchmark
    known = ", ".join(benchmark.name for benchmark in BENCHMARKS)
    raise ModelError(f"no benchmark is named {name!r}; known: {known}. For your own data set, write a small YAML file")


def load_benchmark_yaml(path: str | Path) -> Benchmark:
    """Read a data set of one's own.

    ::

        name: clinic
        classes: [Neutral, Pain]
        folds:                        # or a number k, for set_1_train.txt, set_1_test.txt ... set_k_test.txt
          - {train: train.txt, test: test.txt}
        subject_pattern: 'p(\\d+)_'    # optional; and recording_pattern
        schedule: {epochs: 30}        # optional; the other settings as in `Schedule`

    Raises
    ------
    ModelError
        For an unreadable file, a missing or unknown setting or one of the wrong kind.
    """
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{path} cannot be read as a benchmark: {error}") from error
    if not isinstance(given, dict) or not {"name", "classes", "folds"} <= set(given):
        raise ModelError(f"{path}: a benchmark needs name, classes and folds; found {_shown(given)}")
    known = ("name", "classes", "folds", "schedule", "subject_pattern", "recording_pattern", "note")
    _refuse_unknown(path, given, known)
    if not isinstance(given["classes"], list):
        raise ModelError(f"{path}: classes must be a list of names; found {given['classes']!r}")
    settings = given.get("schedule") or {}
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: schedule must be settings by name; found {settings!r}")
    _refuse_unknown(path, settings, [setting.name for setting in fields(Schedule)])
    for name, value in settings.items():
        numbers = value if name == "milestones" and isinstance(value, list) else [value]
        if (name == "milestones") != isinstance(value, list) or not all(isinstance(n, int | float) for n in numbers):
            expected = "a list of epochs" if name == "milestones" else "a number"
            raise ModelError(f"{path}: {name} must be {expected}; found {value!r}")
    if "milestones" in settings:
        settings["milestones"] = tuple(settings["milestones"])
    return Benchmark(
        name=str(given["name"]),
        classes=tuple(str(name) for name in given["classes"]),
        folds=_yaml_folds(path, given["folds"]),
        schedule=Schedule(**settings),
        subject_pattern=str(given.get("subject_pattern", "")),
        recording_pattern=str(given.get("recording_pattern", "")),
        note=str(given.get("note", "")),
    )


def _yaml_folds(path: str | Path, given: Any) -> tuple[Fold, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        return _sets(given)
    if isinstance(given, list) and all(isinstance(fold, dict) and set(fold) == {"train", "test"} for fold in given):
        return tuple(Fold(k, str(fold["train"]), str(fold["test"])) for k, fold in enumerate(given, start=1))
    raise ModelError(f"{path}: folds must be a number or a list of {{train: FILE, test: FILE}}; found {given!r}")


def _refuse_unknown(path: str | Path, given: dict[Any, Any], known: Sequence[str]) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise ModelError(f"{path}: unknown setting {', '.join(unknown)}; known: {', '.join(known)}")


def _shown(given: Any) -> str:
    return ", ".join(map(str, given)) if isinstance(given, dict) else repr(given)


def _plain(name: str) -> str:
    return re.sub(r"[\s_()-]", "", name).lower()


def _key(pattern: str, clip_id: str) -> str | None:
    name = clip_id.rstrip("/").rsplit("/", 1)[-1]
    found = re.match(pattern, name, re.IGNORECASE) if pattern else None
    return "-".join(group for group in found.groups() if group) if found else None


def _sets(count: int) -> tuple[Fold, ...]:
    # DFEW's published names; our convention for the others, whose file names are not specified.
    return tuple(Fold(k, f"set_{k}_train.txt", f"set_{k}_test.txt") for k in range(1, count + 1))


def _published(view: str, *uar_war: tuple[float, float]) -> tuple[PublishedScore, ...]:
    return tuple(PublishedScore(view, model, uar, war) for model, (uar, war) in zip(MODELS, uar_war, strict=True))


_SEVEN = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
_MAFW = (
    "Anger",
    "Disgust",
    "Fear",
    "Happiness",
    "Neutral",
    "Sadness",
    "Surprise",
    "Contempt",
    "Anxiety",
    "Helplessness",
    "Disappointment",
)

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        name="FERV39k",
        classes=_SEVEN,
        folds=(Fold(1, "train_All.txt", "test_All.txt"),),
        schedule_published=True,
        scores=_published("whole frame", (38.58, 47.70), (37.82, 47.50), (38.78, 48.34))
        + _published("faces", (39.83, 49.65), (39.23, 48.07), (40.29, 50.47)),
        note="31,088 training and 7,847 test clips.",
    ),
    Benchmark(
        name="DFEW",
        classes=_SEVEN,
        folds=_sets(5),
        schedule=Schedule(epochs=30, milestones=(10, 15, 20, 25), factor=0.5),
        schedule_published=True,
        scores=_published("whole frame", (52.41, 61.33), (51.20, 60.23), (52.87, 62.09))
        + _published("faces", (61.21, 69.81), (60.29, 68.75), (62.28, 70.85)),
    ),
    Benchmark(name="MAFW-single", classes=_MAFW, folds=_sets(5)),
    Benchmark(
        name="MAFW-compound",
        classes=_MAFW + tuple(f"compound-{number}" for number in range(12, 44)),
        folds=_sets(5),
        note="43 classes: the 11 single ones, then 32 compounds, numbered here because their names and order are those "
        "of the lists you obtained. To see names, write a YAML file with the classes in your lists' order.",
    ),
    Benchmark(
        name="CREMA-D",
        classes=("Anger", "Happy", "Neutral", "Fear", "Sad", "Disgust"),
        folds=_sets(5),
        subject_pattern=r"(\d+)_",
        note="The published train.txt and test.txt share every subject.",
    ),
    Benchmark(
        name="eNTERFACE05",
        classes=("Anger", "Happiness", "Surprise", "Fear", "Sadness", "Disgust"),
        folds=_sets(5),
        subject_pattern=r"s(\d+)_",
        note="The published train.txt and test.txt share every subject.",
    ),
    Benchmark(
        name="RAVDESS",
        classes=("Neutral", "Calm", "Happy", "Sad", "Angry", "Fearful", "Disgust", "Surprised"),
        folds=_sets(6),
        subject_pattern=r"(?:\d+-){6}(\d+)",
        recording_pattern=r"\d+-((?:\d+-){5}\d+)",  # all but the modality: 01 and 02 are one recording
        note='70 % of the test clips in the published "Random" lists have their twin (modality 01 or 02) in training.',
    ),
    Benchmark(
        name="MELD",
        classes=("Neutral", "Surprise", "Fear", "Sadness", "Anger", "Disgust", "Joy"),
        folds=(Fold(1, "train.txt", "test.txt"),),
        subject_pattern=r"dia(\d+)_utt",
        note="The key is the dialogue, not the speaker; MELD counts dialogues anew in each of its own parts, "
        "so equal numbers in train and test need not be the same dialogue.",
    ),
    Benchmark(
        name="CASME-II",
        classes=("Happiness", "Surprise", "Repression", "Others", "Disgust"),
        folds=_sets(26),
        subject_pattern=r"sub(\d+)",
        note="Leave one subject out: 26 folds.",
    ),
)
