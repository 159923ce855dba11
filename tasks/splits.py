"""From annotation lists to folds: one numbering of all clips, what is validated on, and what train and test share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pthnet.benchmarks import Overlap
from pthnet.errors import ModelError
from tasks.feature_set import Split


@dataclass(frozen=True, kw_only=True)
class FoldLists:
    """The clips and labels one fold's lists name.

    Attributes
    ----------
    name : str
    train_ids, test_ids : str [n]
    train_labels, test_labels : int64 [n]
    """

    name: str
    train_ids: np.ndarray
    train_labels: np.ndarray
    test_ids: np.ndarray
    test_labels: np.ndarray

    def keep(self, held: np.ndarray) -> "FoldLists":
        """The same fold without the clips that are not in `held` (str)."""
        train, test = np.isin(self.train_ids, held), np.isin(self.test_ids, held)
        if not train.any() or not test.any():
            which = "train" if not train.any() else "test"
            raise ModelError(f"fold {self.name}: none of the {which} clips has features; extract them first")
        return FoldLists(
            name=self.name,
            train_ids=self.train_ids[train],
            train_labels=self.train_labels[train],
            test_ids=self.test_ids[test],
            test_labels=self.test_labels[test],
        )


@dataclass(frozen=True, kw_only=True)
class Census:
    """All clips of all folds, each once, and the folds as positions among them."""

    clip_ids: np.ndarray
    labels: np.ndarray
    splits: list[Split] = field(default_factory=list)


def census(
    folds: Sequence[FoldLists],
    *,
    validation: float = 0.0,
    seed: int = 0,
    subject_of: Callable[[str], str | None] | None = None,
) -> Census:
    """Number all clips once and cut each fold's validation part off its training list.

    Parameters
    ----------
    folds : sequence of FoldLists
    validation : float
        Share of the training clips held out, in every class alike; 0 for none.
    seed : int
        Of the draw.
    subject_of : callable, optional
        Subject of a clip id; whole subjects are held out when every training clip has one.

    Raises
    ------
    ModelError
        When two lists give one clip different labels.
    """
    ids = np.concatenate([part for fold in folds for part in (fold.train_ids, fold.test_ids)])
    labels = np.concatenate([part for fold in folds for part in (fold.train_labels, fold.test_labels)])
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    wrong = np.flatnonzero(labels[first][inverse] != labels)
    if len(wrong):
        clip = ids[wrong[0]]
        raise ModelError(
            f"{len(np.unique(ids[wrong]))} clips have two labels in the lists, first {clip}: "
            f"{labels[first][inverse][wrong[0]]} and {labels[wrong[0]]}; correct the lists"
        )
    splits = []
    for fold in folds:
        train, test = np.searchsorted(unique, fold.train_ids), np.searchsorted(unique, fold.test_ids)
        held = np.zeros(len(train), bool)
        if validation:
            groups = _groups(fold.train_ids, subject_of)
            held = _hold_out(fold.train_labels, groups, validation, seed)
        splits.append(Split(fold=fold.name, train=train[~held], validation=train[held], test=test))
    return Census(clip_ids=unique, labels=labels[first].astype(np.int64), splits=splits)


def _groups(clip_ids: np.ndarray, subject_of: Callable[[str], str | None] | None) -> np.ndarray | None:
    if subject_of is None:
        return None
    subjects = [subject_of(str(clip)) for clip in clip_ids]
    return None if any(subject is None for subject in subjects) else np.asarray(subjects, dtype=str)


def _hold_out(labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """Mask of the clips held out: whole groups until the share is reached, or the share of every class."""
    if not 0 < share < 1:
        raise ModelError(f"validation is a share of the training clips between 0 and 1, such as 0.1; found {share}")
    rng = np.random.default_rng([seed, 7])
    held = np.zeros(len(labels), bool)
    if groups is not None and len(np.unique(groups)) > 1:
        names = rng.permutation(np.unique(groups))
        for name in names[:-1]:
            if held.mean() >= share:
                break
            held |= groups == name
        return held
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # A class of a single clip stays in training: without it the class could not be learned.
        held[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return held


@dataclass(frozen=True, kw_only=True)
class ListedCounts:
    """What a list says of the length of its clips: `counts` (int64 [n], 0 where it is silent) of a unit.

    `unit` names an entry of `FeatureSet.counts`: a level, or "frames".
    """

    path: str
    unit: str
    clip_ids: np.ndarray
    counts: np.ndarray


def count_line(listed: ListedCounts, clip_ids: np.ndarray, found: np.ndarray) -> str:
    """How far a list's counts are from the table's, in one line; empty when they agree.

    Parameters
    ----------
    listed : ListedCounts
    clip_ids : str [N]
        Sorted.
    found : int64 [N]
        The table's counts of the same unit.
    """
    place = np.minimum(np.searchsorted(clip_ids, listed.clip_ids), len(clip_ids) - 1)
    held = (clip_ids[place] == listed.clip_ids) & (listed.counts > 0)
    wrong = np.flatnonzero(held & (found[place] != listed.counts))
    if not len(wrong):
        return ""
    first, unit = wrong[0], "frames" if listed.unit == "frames" else f"windows at the {listed.unit} level"
    return (
        f"{listed.path}: {len(wrong)} of {int(held.sum())} clips have another number of {unit} than the list says "
        f"(first: {listed.clip_ids[first]}, listed {listed.counts[first]}, found {found[place][first]}); "
        "other videos, or another window rule"
    )


def overlap_line(fold: str, shared: Overlap) -> str:
    """What a reader must know about one fold's lists, in one line; empty when train and test share nothing."""
    parts = []
    for what, names, share in (
        ("clips", shared.clips, shared.clip_share),
        ("recordings", shared.recordings, shared.recording_share),
        ("subjects", shared.subjects, shared.subject_share),
    ):
        if names:
            parts.append(
                f"{len(names)} {what} in both train and test ({100 * share:.1f} % of the test clips; first: {names[0]})"
            )
    return f"fold {fold}: " + "; ".join(parts) if parts else ""
