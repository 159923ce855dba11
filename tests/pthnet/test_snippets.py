"""The 16 frames of a clip are those of the published rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pthnet.errors import ModelError
from pthnet.snippets import snippet_frames, snippet_offsets


def test_evaluation_takes_the_middle_of_each_segment():
    # n = 25: tick 3, offsets int(1.5 + 3 i); n = 10: tick 1.125, offsets int(0.5625 + 1.125 i)
    assert snippet_offsets(25).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert snippet_offsets(10).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert snippet_frames(10).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9]


@pytest.mark.parametrize("frames", [1, 2, 8, 9])
def test_evaluation_of_short_clips_repeats_the_first_two_frames(frames):
    assert snippet_offsets(frames).tolist() == [0] * 8
    assert set(snippet_frames(frames).tolist()) <= {0, min(1, frames - 1)}


@given(frames=st.integers(1, 400), seed=st.integers(0, 50))
def test_training_draws_one_snippet_in_each_segment(frames, seed):
    offsets = snippet_offsets(frames, np.random.default_rng(seed))
    average = (frames - 1) // 8
    if average == 0:
        assert offsets.tolist() == [0] * 8
    else:
        assert (offsets // average).tolist() == list(range(8))
    chosen = snippet_frames(frames, np.random.default_rng(seed))
    assert chosen.shape == (16,)
    assert chosen.min() >= 0
    assert chosen.max() < frames


def test_every_training_offset_occurs():
    drawn = {int(o) for seed in range(200) for o in snippet_offsets(33, np.random.default_rng(seed))}
    assert drawn == set(range(32))


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ModelError, match="at least one frame"):
        snippet_offsets(0)
