"""Scores of clips and of every window in them, from features: what a prediction is made of.

Three questions, one batch of small pyramids for all of them:

- the clip: the published evaluation, windows sampled into the slots of the deciding level;
- a window: a sliding evaluation. The `context` windows around it (5 at stride 4 are 32 frames) are judged as though
  they were a clip of their own; at the ends of a clip there are fewer. A clip of one window scores as its window does;
- a window's contribution: the clip is judged again without it, the other slots closing up. Exact, not a gradient: the
  probability of the clip's label with the window less that without it. Windows that fill no slot contribute exactly 0,
  and the only window of a clip has no contribution (NaN).

Window i of the n in a clip is window n - 1 - i of the reversed clip; their frames differ by 3 at most.

Shapes: N clips, W windows at the deciding level, C classes, V pyramids, T slots, D feature size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pthnet.errors import ModelError
from pthnet.windows import SLOTS, WINDOW
from storage.columns import ClipFeatures
from tasks.bundle import Bundle
from tasks.evaluate import fuse

CONTEXT = 5
EMPTY = -1  # a slot without a window


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Scores of N clips and of their W windows, clip after clip in time.

    Attributes
    ----------
    clip_ids : list of str [N]
    offsets : int64 [N + 1]
        Windows of clip i are offsets[i]:offsets[i + 1] of the window arrays.
    starts, ends : int64 [W]
        First frame of every window and one past its last, in the clip's own order.
    clip, window : dict of system to float32 [N, C], [W, C]
        Probabilities by "forward", "reverse" (those the model has) and "fused".
    contribution : float32 [W]
        Probability of the clip's label with the window less without it. NaN for the only window of a clip, and
        everywhere when no evidence was asked for.
    used : bool [W]
        Whether the window filled a slot in either direction.
    num_frames : int64 [N]
    fps : float64 [N]
        0 for frames that lie in a folder.
    """

    clip_ids: list[str]
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    clip: dict[str, np.ndarray]
    window: dict[str, np.ndarray]
    contribution: np.ndarray
    used: np.ndarray
    num_frames: np.ndarray
    fps: np.ndarray


@dataclass(frozen=True)
class _Level:
    """The deciding level's windows of all clips in one direction: rows of the features, clip after clip."""

    rows: np.ndarray  # int64 [W]
    offsets: np.ndarray  # int64 [N + 1]

    @staticmethod
    def of(clips: ClipFeatures, level: str) -> "_Level":
        offsets = np.asarray(getattr(clips, f"{level}_offsets"), np.int64)
        first = np.repeat(np.asarray(clips.offsets[:-1], np.int64), np.diff(offsets))
        return _Level(np.asarray(getattr(clips, level), np.int64) + first, offsets)


def score_clips(
    bundle: Bundle,
    clips: Mapping[str, ClipFeatures],
    *,
    device: str = "cpu",
    context: int = CONTEXT,
    evidence: bool = True,
    batch: int = 256,
) -> ClipScores:
    """Score clips, every window of theirs, and what each window did for the clip's label.

    Parameters
    ----------
    bundle
        The model.
    clips
        Features of the same clips in every direction the model has.
    device
        Where the networks run.
    context
        Windows of a sliding evaluation, odd, from 1 to the slots of the level.
    evidence
        False leaves the contributions out: less than half the work for short clips.
    batch
        Pyramids per forward pass.

    Raises
    ------
    ModelError
        For features of another extractor, or a context that does not fit.
    """
    slots = SLOTS[bundle.level]
    if not 1 <= context <= slots or context % 2 == 0:
        raise ModelError(f"a context is an odd number of windows from 1 to {slots - 1 + slots % 2}; found {context}")
    levels = {direction: _Level.of(clips[direction], bundle.level) for direction in bundle.networks}
    whole, around, without, filled = {}, {}, {}, {}
    for direction, network in bundle.networks.items():
        level, reverse = levels[direction], direction == "reverse"
        chosen = _slots(level.offsets, slots)  # [N, T] positions in the level
        parts = [chosen, _around(level.offsets, context, slots, reverse)]
        removed = _removed(chosen) if evidence else None
        if removed is not None:
            parts.append(removed.slots)
        logits = _logits(bundle, network, clips[direction].features, level, np.concatenate(parts), device, batch)
        count, windows = len(chosen), len(level.rows)
        whole[direction], around[direction] = logits[:count], logits[count : count + windows]
        # Of every window: the clip's logits without it, which are the clip's own where it filled no slot.
        lone = np.repeat(whole[direction], np.diff(level.offsets), axis=0)
        there = np.zeros(windows, bool)
        there[chosen[chosen != EMPTY]] = True
        if removed is not None:
            lone[removed.window] = logits[count + windows :]
        if reverse:
            order = _mirrored(level.offsets)
            lone, there = lone[order], there[order]
        without[direction], filled[direction] = lone, there
    offsets = next(iter(levels.values())).offsets
    clip, window = _shares(whole, bundle.mu), _shares(around, bundle.mu)
    label = np.repeat(clip["fused"].argmax(1), np.diff(offsets))
    contribution = np.full(len(label), np.nan, np.float32)
    if evidence and len(label):
        each = np.arange(len(label))
        kept = np.repeat(clip["fused"], np.diff(offsets), axis=0)[each, label]
        contribution = kept - _shares(without, bundle.mu)["fused"][each, label]
        contribution[np.repeat(np.diff(offsets) == 1, np.diff(offsets))] = np.nan
    starts, ends = _frames(clips, levels)
    any_clips = next(iter(clips.values()))
    return ClipScores(
        clip_ids=list(any_clips.clip_ids),
        offsets=offsets,
        starts=starts,
        ends=ends,
        clip=clip,
        window=window,
        contribution=contribution,
        used=np.logical_or.reduce(list(filled.values())),
        num_frames=np.asarray(any_clips.num_frames, np.int64),
        fps=np.nan_to_num(np.asarray(any_clips.fps, np.float64)),
    )


@dataclass(frozen=True)
class _Removed:
    slots: np.ndarray  # int64 [V, T]
    window: np.ndarray  # int64 [V], the window that is left out


def _slots(offsets: np.ndarray, slots: int) -> np.ndarray:
    """The published evaluation's windows of every clip [N, T], as positions in the level; EMPTY where there is none."""
    import torch

    from pthnet.slots import sample_slots_batch

    index, mask = sample_slots_batch(torch.from_numpy(np.diff(offsets)), slots)
    return np.where(mask.numpy(), index.numpy() + offsets[:-1, None], EMPTY)


def _around(offsets: np.ndarray, context: int, slots: int, reverse: bool) -> np.ndarray:
    """The windows around each window [W, T], windows in time, the stretch in the direction's own order."""
    first, last = (np.repeat(edge, np.diff(offsets)) for edge in (offsets[:-1], offsets[1:] - 1))
    here = np.arange(len(first))
    low, high = np.maximum(here - context // 2, first), np.minimum(here + context // 2, last)
    if reverse:
        low, high = first + last - high, first + last - low
    stretch = low[:, None] + np.arange(slots)
    return np.where(stretch <= high[:, None], stretch, EMPTY)


def _removed(chosen: np.ndarray) -> _Removed:
    """Each clip once without each of its slots, the others closing up; clips of one slot are left alone."""
    there = chosen != EMPTY
    clip, slot = np.nonzero(there & (there.sum(1) > 1)[:, None])
    kept = np.arange(chosen.shape[1] - 1)
    rest = chosen[clip[:, None], kept + (kept >= slot[:, None])]
    return _Removed(np.pad(rest, ((0, 0), (0, 1)), constant_values=EMPTY), chosen[clip, slot])


def _mirrored(offsets: np.ndarray) -> np.ndarray:
    """For every window in time, its counterpart in the reversed clip."""
    first, last = (np.repeat(edge, np.diff(offsets)) for edge in (offsets[:-1], offsets[1:] - 1))
    return first + last - np.arange(len(first))


def _logits(
    bundle: Bundle, network: Any, features: np.ndarray, level: _Level, pyramids: np.ndarray, device: str, batch: int
) -> np.ndarray:
    """Logits [V, C] of pyramids given as positions in the level [V, T]. Equal ones run once: short clips have many."""
    import torch

    from pthnet.matmul import exact_float32

    bundle.require_extractor(bundle.extractor_id, features.shape[1] if features.size else network.config.in_dim)
    distinct, back = np.unique(pyramids, axis=0, return_inverse=True)
    found = torch.empty(len(distinct), network.config.num_classes)
    network = network.to(device).eval()
    # Chunks of clips are bounded, so their features are too; read-only memory of the table is not written to.
    held = torch.from_numpy(features if features.flags.writeable else features.copy()).to(device)
    with torch.inference_mode(), exact_float32(device):
        for start in range(0, len(distinct), batch):
            part = distinct[start : start + batch]
            there = part != EMPTY
            rows = torch.from_numpy(np.where(there, level.rows[part], 0)).to(device)
            mask = torch.from_numpy(there).to(device)
            x = held[rows] * mask[..., None]  # [V, T, D]
            found[start : start + batch] = (
                network({bundle.level: (x.transpose(1, 2), mask)})[bundle.level].float().cpu()
            )
    return found.numpy()[back.reshape(-1)]


def _shares(logits: Mapping[str, np.ndarray], mu: float) -> dict[str, np.ndarray]:
    """Probabilities of every direction and fused, float32."""
    fused = fuse(logits.get("forward"), logits.get("reverse"), mu)
    found = {}
    for system, values in {**logits, "fused": fused}.items():
        shifted = np.exp(values - values.max(1, keepdims=True, initial=-np.inf))
        found[system] = (shifted / shifted.sum(1, keepdims=True)).astype(np.float32)
    return found


def _frames(clips: Mapping[str, ClipFeatures], levels: Mapping[str, _Level]) -> tuple[np.ndarray, np.ndarray]:
    """First frame and one past the last of every window, in time."""
    direction = "forward" if "forward" in levels else "reverse"
    level, given = levels[direction], clips[direction]
    starts = np.asarray(given.starts, np.int64)[level.rows]
    frames = np.repeat(np.asarray(given.num_frames, np.int64), np.diff(level.offsets))
    if direction == "reverse":
        starts = np.maximum(frames - WINDOW - starts, 0)[_mirrored(level.offsets)]
    return starts, np.minimum(starts + WINDOW, frames)
