"""Scores of clips and windows against the plain way: one clip at a time, cut out or with a window taken away."""

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.slots import sample_slots
from tasks.bundle import Bundle
from tests.predicted import clip_features, small_bundle, some_scores

FRAMES = [5, 16, 23, 40, 97, 260]  # 1, 1, 3, 7, 22 and 62 windows


def shares(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return values / values.sum()


def plainly(bundle: Bundle, windows: dict[str, np.ndarray]) -> np.ndarray:
    """Fused logits of one clip of these windows [n, dim], by direction."""
    found = {}
    for direction, network in bundle.networks.items():
        x, mask = torch.zeros(1, 16, network.config.in_dim), torch.zeros(1, 16, dtype=torch.bool)
        chosen = windows[direction][sample_slots(len(windows[direction]), 16)]
        x[0, : len(chosen)], mask[0, : len(chosen)] = torch.from_numpy(chosen), True
        with torch.no_grad():
            found[direction] = network({"high": (x.transpose(1, 2), mask)})["high"][0].numpy()
    return bundle.mu * found["forward"] + (1 - bundle.mu) * found["reverse"]


def test_a_clip_a_window_and_a_contribution_are_what_their_definitions_say() -> None:
    bundle = small_bundle()
    scores, clips = some_scores(bundle, FRAMES)
    for index in range(len(FRAMES)):
        stretch = slice(scores.offsets[index], scores.offsets[index + 1])
        own = {name: given.features[stretch] for name, given in clips.items()}
        n = len(own["forward"])
        whole = shares(plainly(bundle, own))
        np.testing.assert_allclose(scores.clip["fused"][index], whole, atol=1e-5)
        slots = sample_slots(n, 16).tolist()
        for window in range(n):
            low, high = max(0, window - 2), min(n, window + 3)
            cut = {"forward": own["forward"][low:high], "reverse": own["reverse"][n - high : n - low]}
            np.testing.assert_allclose(scores.window["fused"][stretch][window], shares(plainly(bundle, cut)), atol=1e-5)
            left = {
                name: own[name][[slot for slot in slots if slot != place]]
                for name, place in (("forward", window), ("reverse", n - 1 - window))
            }
            expected = whole.max() - shares(plainly(bundle, left))[whole.argmax()] if n > 1 else np.nan
            np.testing.assert_allclose(scores.contribution[stretch][window], expected, atol=1e-5)


def test_windows_that_fill_no_slot_contribute_exactly_nothing() -> None:
    scores, _ = some_scores(small_bundle(), [400])
    assert not scores.used.all()
    assert (scores.contribution[~scores.used] == 0).all()
    assert (scores.contribution[scores.used] != 0).any()


def test_windows_lie_in_time_whatever_the_direction() -> None:
    bundle = small_bundle()
    scores, _ = some_scores(bundle, [23, 40])
    assert scores.starts.tolist() == [0, 4, 7, 0, 4, 8, 12, 16, 20, 24]
    assert scores.ends.tolist() == [16, 20, 23, 16, 20, 24, 28, 32, 36, 40]
    del bundle.networks["forward"]
    alone, _ = some_scores(bundle, [23, 5])
    assert alone.starts.tolist() == [0, 3, 7, 0]
    assert alone.ends.tolist() == [16, 19, 23, 5]
    np.testing.assert_array_equal(alone.clip["fused"], alone.clip["reverse"])


def test_without_evidence_the_scores_are_the_same_and_contributions_unknown() -> None:
    bundle = small_bundle()
    full, _ = some_scores(bundle, FRAMES)
    quick, _ = some_scores(bundle, FRAMES, evidence=False)
    np.testing.assert_allclose(full.window["fused"], quick.window["fused"], atol=1e-6)
    assert np.isnan(quick.contribution).all()


@pytest.mark.parametrize("context", [0, 2, 17])
def test_a_context_that_has_no_middle_or_no_room_is_refused(context: int) -> None:
    with pytest.raises(ModelError, match="odd number of windows"):
        some_scores(small_bundle(), [40], context=context)


def test_no_clip_at_all_is_no_error() -> None:
    bundle = small_bundle()
    empty = clip_features([40])
    from dataclasses import replace

    nothing = replace(
        empty,
        clip_ids=[],
        offsets=np.zeros(1, np.int64),
        features=np.empty((0, 16), np.float32),
        num_frames=empty.num_frames[:0],
        fps=empty.fps[:0],
        high=empty.high[:0],
        high_offsets=np.zeros(1, np.int64),
    )
    from tasks.score import score_clips

    assert len(score_clips(bundle, {"forward": nothing, "reverse": nothing}).starts) == 0
