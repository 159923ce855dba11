"""CFC-SP (Xue et al., 2022): smooth predicting over the frames of a video, and the coarse-to-fine cascade.

    smoothed = smooth(coarse_logits, videos, present)
    labels = cascade(smoothed, smooth(negative_logits, videos, present))

Works on frames, and on the windows of long videos in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pthnet.errors import ModelError

# N frames in the order of their videos, C classes


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """How fine classes group into coarse ones, and which of them the second network tells apart.

    Parameters
    ----------
    classes
        All fine classes; a label is a position in it.
    coarse_names, coarse
        Names of the coarse classes; the coarse class of each fine one.
    group
        The coarse class that holds more than one fine class.
    group_names, fine
        Names of the second network's classes; its class for each fine one, -1 where it has none.
    """

    classes: tuple[str, ...]
    coarse_names: tuple[str, ...]
    coarse: tuple[int, ...]
    group: int
    group_names: tuple[str, ...]
    fine: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.classes)
        if len(self.coarse) != n or len(self.fine) != n:
            raise ModelError(f"coarse and fine need one entry for each of the {n} classes {self.classes}")
        if sorted(set(self.coarse)) != list(range(len(self.coarse_names))):
            raise ModelError(f"coarse {self.coarse} must use every class of {self.coarse_names} by position")
        if [f >= 0 for f in self.fine] != [c == self.group for c in self.coarse]:
            raise ModelError("fine must be -1 exactly for the classes outside the group")
        if sorted(f for f in self.fine if f >= 0) != list(range(len(self.group_names))):
            raise ModelError(f"fine {self.fine} must use every class of {self.group_names} once")
        outside = [c for c in self.coarse if c != self.group]
        if len(set(outside)) != len(outside):
            raise ModelError("every coarse class but the group must hold exactly one class")

    def labels(self, labels: Any, head: str = "all") -> np.ndarray:
        """Labels [N] over all classes -> those of one network, -1 where it has none or the frame is unlabelled.

        Parameters
        ----------
        labels
            int [N], -1 for unlabelled.
        head
            "all", "coarse" or "negative".
        """
        given = np.asarray(labels, np.int64)
        if given.size and (given.min() < -1 or given.max() >= len(self.classes)):
            raise ModelError(
                f"labels must lie in -1..{len(self.classes) - 1} for {self.classes}, "
                f"found {given.min()}..{given.max()}; check the list's label map"
            )
        tables = {"all": tuple(range(len(self.classes))), "coarse": self.coarse, "negative": self.fine}
        return np.array([*tables[head], -1], np.int64)[given]  # -1 picks the last entry

    def names(self, head: str = "all") -> tuple[str, ...]:
        """Class names of one network: "all", "coarse" or "negative"."""
        return {"all": self.classes, "coarse": self.coarse_names, "negative": self.group_names}[head]


ABAW = ClassMap(
    classes=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    coarse_names=("Neutral", "Happiness", "Surprise", "Other", "Negative"),
    coarse=(0, 4, 4, 4, 1, 4, 2, 3),
    group=4,
    group_names=("Anger", "Disgust", "Fear", "Sadness"),
    fine=(-1, 0, 1, 2, -1, 3, -1, -1),
)


def class_map(coarse_names: Sequence[str], group: str, group_names: Sequence[str]) -> ClassMap:
    """The grouping of two networks from their class names; CFC-SP's own names give `ABAW` with its class order.

    Parameters
    ----------
    coarse_names
        Classes of the first network, `group` among them.
    group
        The one that the second network tells apart.
    group_names
        Classes of the second network.

    Returns
    -------
    ClassMap
        Its classes are the first network's without the group, then the second's.
    """
    if group not in coarse_names:
        raise ModelError(f"no class {group!r} in the coarse network; it has {', '.join(coarse_names)}")
    if (tuple(coarse_names), group, tuple(group_names)) == (ABAW.coarse_names, "Negative", ABAW.group_names):
        return ABAW
    single = [name for name in coarse_names if name != group]
    both = set(single) & set(group_names)
    if both:
        raise ModelError(f"class {sorted(both)[0]!r} is in both networks; a class belongs to the group or stands alone")
    place = list(coarse_names).index(group)
    return ClassMap(
        classes=(*single, *group_names),
        coarse_names=tuple(coarse_names),
        coarse=(*(list(coarse_names).index(name) for name in single), *[place] * len(group_names)),
        group=place,
        group_names=tuple(group_names),
        fine=(*[-1] * len(single), *range(len(group_names))),
    )


def smooth(logits: Any, videos: Any = None, present: Any = None, w: int = 2, *, lengths: Any = None) -> Any:
    """Smooth predicting: f'_i = f_i + u_i, with u_i the mean of f over frames i-w..i+w of the same video.

    Parameters
    ----------
    logits
        [N, C] outputs before softmax, frames in order, one row for every frame of each video: array or tensor.
    videos
        [N] video of each row, equal values together; None with `lengths` None means one video. Integers that are fewer
        than the rows and add up to them are read as `lengths`.
    present
        [N] bool, False where no face was found; those rows' values are never read. None: every frame has one.
    w
        Frames on each side; the paper draws 2. 0 gives f' = 2 f.
    lengths
        Frames of each video, in place of `videos`.

    Returns
    -------
    [N, C] float64 array (a float64 tensor for a tensor). The window is cut at the video's ends and skips frames without
    a face. A frame without a face has no f of its own and gets u alone, or zeros (a uniform softmax) when its window
    holds no face at all.

    Raises
    ------
    ModelError
        Rows that do not fit `videos`, `lengths` or `present`, or a video whose rows do not stand together.
    """
    is_tensor = hasattr(logits, "detach")
    f = np.asarray(logits.detach().cpu().numpy() if is_tensor else logits, np.float64)
    if f.ndim != 2:
        raise ModelError(f"logits must be [frames, classes], found shape {f.shape}")
    if w < 0:
        raise ModelError(f"w counts frames on each side and cannot be negative, found {w}")
    run = _runs(len(f), videos, lengths)
    face = np.ones(len(f), bool) if present is None else np.asarray(present, bool)
    if face.shape != (len(f),):
        raise ModelError(f"present must have one entry for each of the {len(f)} rows, found shape {face.shape}")
    f = np.where(face[:, None], f, 0.0)
    total, count = f.copy(), face.astype(np.float64)
    # one addition per neighbour rather than differences of running sums: nothing cancels, no frame feels a far one
    for step in range(1, min(w, len(f) - 1) + 1):
        same = run[step:] == run[:-step]
        for here, there in ((slice(step, None), slice(None, -step)), (slice(None, -step), slice(step, None))):
            counted = same & face[there]
            total[here] += np.where(counted[:, None], f[there], 0.0)
            count[here] += counted
    smoothed = f + total / np.maximum(count, 1.0)[:, None]
    if not is_tensor:
        return smoothed
    import torch

    return torch.from_numpy(smoothed).to(logits.device)


def cascade(coarse: Any, negative: Any, *, classes: ClassMap = ABAW) -> np.ndarray:
    """Class of every frame: the coarse argmax; where it is the group, the second network's argmax.

    Parameters
    ----------
    coarse
        [N, coarse classes] outputs, smoothed or not.
    negative
        [N, group classes] outputs of the second network for the same rows.
    classes
        The grouping; the default is CFC-SP's.

    Returns
    -------
    int64 [N], positions in `classes.classes`. Ties go to the first class.
    """
    c, n = _pair(coarse, negative, classes)
    of_coarse = np.full(len(classes.coarse_names), -1, np.int64)
    of_group = np.empty(len(classes.group_names), np.int64)
    for label, (group, fine) in enumerate(zip(classes.coarse, classes.fine, strict=True)):
        if fine < 0:
            of_coarse[group] = label
        else:
            of_group[fine] = label
    first = c.argmax(axis=1)
    return np.where(first == classes.group, of_group[n.argmax(axis=1)], of_coarse[first])


def cascade_probabilities(coarse: Any, negative: Any, *, classes: ClassMap = ABAW) -> np.ndarray:
    """The probabilistic form, ours and not the paper's: p(k) = p_coarse(group) * p_negative(k) inside the group.

    Parameters are those of `cascade`. Its argmax may differ from the cascade's: a group that wins as a whole may hold
    no class that beats the best single one.

    Returns
    -------
    float64 [N, classes], rows sum to 1.
    """
    c, n = _pair(coarse, negative, classes)
    p_coarse, p_group = _softmax(c), _softmax(n)
    probabilities = p_coarse[:, list(classes.coarse)]
    inside = np.array(classes.fine) >= 0
    probabilities[:, inside] *= p_group[:, [fine for fine in classes.fine if fine >= 0]]
    return probabilities


def _runs(rows: int, videos: Any, lengths: Any) -> np.ndarray:
    """Number of the video each row belongs to."""
    if videos is not None and lengths is not None:
        raise ModelError("give videos or lengths, not both")
    if lengths is not None:
        frames = np.asarray(lengths, np.int64)
        if frames.ndim != 1 or (frames < 0).any() or frames.sum() != rows:
            raise ModelError(f"lengths add up to {frames.sum()} frames, the logits have {rows}")
        return np.repeat(np.arange(len(frames)), frames)
    if videos is None:
        return np.zeros(rows, np.int64)
    ids = np.asarray(videos)
    if ids.ndim == 1 and len(ids) < rows and ids.dtype.kind in "iu" and ids.sum() == rows:
        return _runs(rows, None, ids)
    if ids.shape != (rows,):
        raise ModelError(f"videos must name the video of each of the {rows} rows, found shape {ids.shape}")
    starts = np.flatnonzero(np.r_[rows > 0, ids[1:] != ids[:-1]])
    names, counts = np.unique(ids[starts], return_counts=True)
    if (counts > 1).any():
        raise ModelError(f"rows of video {names[counts > 1][0]!r} do not stand together; sort by video, then by frame")
    run = np.zeros(rows, np.int64)
    run[starts[1:]] = 1
    return run.cumsum()


def _pair(coarse: Any, negative: Any, classes: ClassMap) -> tuple[np.ndarray, np.ndarray]:
    c, n = (np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x, np.float64) for x in (coarse, negative))
    wanted = (len(classes.coarse_names), len(classes.group_names))
    if c.ndim != 2 or n.ndim != 2 or len(c) != len(n) or (c.shape[1], n.shape[1]) != wanted:
        raise ModelError(
            f"coarse must be [N, {wanted[0]}] ({', '.join(classes.coarse_names)}) and negative [N, {wanted[1]}] "
            f"({', '.join(classes.group_names)}), found {c.shape} and {n.shape}"
        )
    return c, n


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponents / exponents.sum(axis=1, keepdims=True)
