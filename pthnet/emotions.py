"""The label maps of the public face data sets: which number or word means which expression.

LABELS["rafdb"].index("1")      # 0: Surprise, RAF-DB counts from 1
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pthnet.errors import ModelError

# spellings of one expression in the lists of the data sets
_WORDS = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "others": "other",
}


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Class names in index order, and the number that a list writes for the first of them.

    Parameters
    ----------
    name
        How the map is asked for.
    classes
        Names by index.
    first
        0 or 1: what the list writes for `classes[0]`.
    """

    name: str
    classes: tuple[str, ...]
    first: int = 0

    def index(self, token: str) -> int:
        """Index of what a list says: a number counted from `first`, a class name in any spelling, or -1 (unlabelled).

        Raises
        ------
        ModelError
            A token that the map does not know.
        """
        text = token.strip()
        if text.lstrip("-").isdigit():
            number = int(text)
            if number == -1:
                return -1
            if 0 <= number - self.first < len(self.classes):
                return number - self.first
        else:
            words = [emotion(name) for name in self.classes]
            if emotion(text) in words:
                return words.index(emotion(text))
        raise ModelError(
            f"label {text!r} is not in the label map {self.name!r}, which knows {self.first} to "
            f"{self.first + len(self.classes) - 1} ({', '.join(self.classes)}) and -1 for unlabelled; choose another"
        )

    def to(self, other: "LabelMap") -> np.ndarray:
        """Index in `other` for each index here, -1 where `other` lacks the expression: int64 [classes]."""
        known = [emotion(name) for name in other.classes]
        return np.array([known.index(e) if (e := emotion(name)) in known else -1 for name in self.classes], np.int64)


def emotion(word: str) -> str:
    """One spelling for each expression: "Happy", "happiness" and "Joy" are all "happiness"."""
    plain = word.strip().lower()
    return _WORDS.get(plain, plain)


def _maps(*maps: LabelMap) -> dict[str, LabelMap]:
    return {m.name: m for m in maps}


_DFEW = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
LABELS = _maps(
    LabelMap(name="dfew", classes=_DFEW),
    LabelMap(name="dfew-from-1", classes=_DFEW, first=1),  # as in the data set's own annotation tables
    LabelMap(name="ferv39k", classes=_DFEW),
    LabelMap(
        name="rafdb",
        classes=("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"),
        first=1,
    ),
    LabelMap(name="rafdb-from-0", classes=("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")),
    LabelMap(name="afew", classes=("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")),
    LabelMap(
        name="affwild2",
        classes=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    ),
)


def label_map(name: str | Iterable[str]) -> LabelMap:
    """The label map of that name, or one made of the given class names.

    Parameters
    ----------
    name
        A key of `LABELS`, class names separated by commas, or a sequence of class names.
    """
    if isinstance(name, str):
        if name in LABELS:
            return LABELS[name]
        names = tuple(part.strip() for part in name.split(","))
        if len(names) < 2:
            raise ModelError(f"no label map {name!r}; known: {', '.join(LABELS)}, or give class names with commas")
        return LabelMap(name=name, classes=names)
    return LabelMap(name="custom", classes=tuple(name))
