"""The features of one direction of all wanted clips, as a few flat arrays: what training and evaluation read.

A FeatureSet is read from the feature table once, put into Ray's object store, and mapped by every worker without a
copy. Folds do not copy it either: a `Split` is three arrays of positions into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pthnet.windows import LEVELS
from storage.columns import complete
from storage.errors import StorageError
from storage.features import FeatureTable


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Window features of N clips in one direction, with their labels.

    Attributes
    ----------
    clip_ids : str [N]
        Fixed-width strings, so that the array travels as one buffer.
    features : float32 [W, dim]
        The windows of all clips, clip after clip.
    offsets : int64 [N + 1]
        The windows of clip i are ``features[offsets[i]:offsets[i + 1]]``.
    positions, position_offsets : dict of level to int32 [P] and int64 [N + 1]
        Windows of a level, counted within the clip.
    labels : int64 [N]
    direction, extractor : str
    version : int
        Version of the feature table that was read.
    num_frames : int64 [N], optional
        Frames of the clips, where they come from a table.
    """

    clip_ids: np.ndarray
    features: np.ndarray
    offsets: np.ndarray
    positions: dict[str, np.ndarray]
    position_offsets: dict[str, np.ndarray]
    labels: np.ndarray
    direction: str = "forward"
    extractor: str = ""
    version: int = 0
    num_frames: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def dim(self) -> int:
        """Size of a window feature."""
        return int(self.features.shape[1])

    def counts(self) -> dict[str, np.ndarray]:
        """Windows of every clip at each level, and its frames where known: name -> int64 [N]."""
        found = {level: np.diff(offsets) for level, offsets in self.position_offsets.items()}
        return found if self.num_frames is None else {**found, "frames": self.num_frames}

    def locate(self, clip_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Positions of the clips, int64; -1 for those the set does not hold."""
        order = np.argsort(self.clip_ids, kind="stable")
        wanted = np.asarray(clip_ids, dtype=str)
        if not len(order):
            return np.full(len(wanted), -1)
        slot = np.minimum(np.searchsorted(self.clip_ids, wanted, sorter=order), len(order) - 1)
        found = order[slot]
        return np.where(self.clip_ids[found] == wanted, found, -1)

    def windows_of(self, rows: np.ndarray) -> np.ndarray:
        """Positions in `features` of all windows of the clips at `rows`, int64."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)

    def standardization(self, rows: np.ndarray, block: int = 65536) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (float32 [dim]) over the windows of the clips at `rows`; constant channels get 1."""
        windows = self.windows_of(np.unique(rows))
        total = np.zeros(self.dim)
        for start in range(0, len(windows), block):
            total += self.features[windows[start : start + block]].sum(0, dtype=np.float64)
        mean = total / max(len(windows), 1)
        squares = np.zeros(self.dim)
        for start in range(0, len(windows), block):
            squares += np.square(self.features[windows[start : start + block]] - mean).sum(0)
        deviation = np.sqrt(squares / max(len(windows), 1))
        deviation[deviation < 1e-6] = 1.0
        return mean.astype(np.float32), deviation.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One fold: positions (int64) into a FeatureSet of the clips trained on, chosen on and tested on."""

    fold: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load_feature_set(
    uri: str,
    clip_ids: Sequence[str],
    labels: np.ndarray,
    *,
    direction: str,
    extractor: str,
    version: int | None = None,
) -> FeatureSet:
    """Read one direction of the clips from the feature table and join their labels by clip_id.

    Parameters
    ----------
    uri : str
        The feature table.
    clip_ids : sequence of str [N]
        Each once.
    labels : int [N]
    direction : {"forward", "reverse"}
    extractor : str
        Extractor id.
    version : int, optional
        Version of the table; None reads the newest.

    Raises
    ------
    StorageError
        When clips or the extractor are missing in the table; the message names them and the command that adds them.
    """
    table = FeatureTable(uri)
    version = table.version() if version is None else version
    clips: Any = table.load(clip_ids, direction, extractor, version=version)
    return from_clips(clips, clip_ids, labels, direction=direction, extractor=extractor, version=version)


def from_clips(
    clips: Any,
    clip_ids: Sequence[str],
    labels: np.ndarray,
    *,
    direction: str = "forward",
    extractor: str = "",
    version: int = 0,
) -> FeatureSet:
    """A FeatureSet in the order of `clips` (`storage.features.ClipFeatures`), labels joined by clip_id; no copy."""
    ids = np.asarray(clips.clip_ids, dtype=str)
    wanted = np.asarray(clip_ids, dtype=str)
    order = np.argsort(wanted, kind="stable")
    slot = np.minimum(np.searchsorted(wanted, ids, sorter=order), max(len(order) - 1, 0))
    if len(ids) and not (wanted[order[slot]] == ids).all():
        stray = ids[wanted[order[slot]] != ids]
        raise StorageError(f"the feature table returned {len(stray)} clips that no list names, first {stray[0]}")
    return FeatureSet(
        clip_ids=ids,
        features=clips.features,
        offsets=np.asarray(clips.offsets, dtype=np.int64),
        positions={level: np.asarray(getattr(clips, level), dtype=np.int32) for level in LEVELS},
        position_offsets={level: np.asarray(getattr(clips, f"{level}_offsets"), dtype=np.int64) for level in LEVELS},
        labels=np.asarray(labels, dtype=np.int64)[order[slot]] if len(ids) else np.zeros(0, dtype=np.int64),
        direction=direction,
        extractor=extractor,
        version=version,
        num_frames=np.asarray(clips.num_frames, dtype=np.int64),
    )


def present(keys: pa.Table, extractor: str) -> np.ndarray:
    """Sorted clip_ids (str) that the table holds whole for the extractor, from `FeatureTable.keys()`."""
    whole = complete(keys)
    owned = whole.filter(pc.equal(whole["extractor"], extractor))
    return np.unique(np.asarray(owned["clip_id"].to_pylist(), dtype=str))


def choose_extractor(present_extractors: Sequence[str], wanted: str | None, uri: str) -> str:
    """The extractor to read: the wanted one, or the only one there is.

    Raises
    ------
    StorageError
        When the table lacks the wanted one, holds none, or holds several and none is named.
    """
    names = sorted(present_extractors)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise StorageError(
            f"{uri} holds no features of extractor {wanted}; it has {', '.join(names) or 'none'}. "
            "Name one with --extractor, or run `pthnet extract` with that backbone"
        )
    if len(names) == 1:
        return names[0]
    if not names:
        raise StorageError(f"{uri} holds no features; run `pthnet extract VIDEOS --features {uri}` first")
    raise StorageError(
        f"{uri} holds features of {len(names)} extractors; name one with --extractor: {', '.join(names)}"
    )


def refuse_missing(clip_ids: Sequence[str] | np.ndarray, held: np.ndarray, uri: str, allow: bool) -> np.ndarray:
    """Mask [N] of the clips that the table holds; StorageError when some are missing and `allow` is false."""
    wanted = np.asarray(clip_ids, dtype=str)
    mask = np.isin(wanted, held)
    missing = np.unique(wanted[~mask])
    if len(missing) and (not allow or not mask.any()):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise StorageError(
            f"{len(missing)} of {len(np.unique(wanted))} listed clips have no features in {uri}: {shown}. "
            f"Run `pthnet extract` on their videos, or leave them out with --allow-missing"
        )
    return mask
