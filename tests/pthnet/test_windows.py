import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pthnet.errors import ModelError
from pthnet.windows import (
    DIRECTIONS,
    LEVELS,
    STRIDES,
    TAILS,
    frame_indices,
    pyramid,
    segment_windows,
    segments,
    window_starts,
)

frame_counts = st.integers(1, 700)


@pytest.mark.parametrize(
    ("num_frames", "counts"), [(1, (1, 1, 1)), (16, (1, 1, 1)), (28, (4, 3, 2)), (31, (5, 3, 2)), (47, (9, 5, 3))]
)
def test_a_clip_has_the_published_number_of_windows(num_frames, counts):
    assert tuple(len(window_starts(num_frames, STRIDES[level])) for level in LEVELS) == counts


@given(frame_counts, st.integers(1, 16))
def test_the_cover_rule_covers_every_frame_and_clamps_the_last_window(num_frames, stride):
    starts = window_starts(num_frames, stride)
    assert starts.dtype == np.int64
    assert len(starts) == (1 if num_frames <= 16 else -(-(num_frames - 16) // stride) + 1)
    assert starts[-1] == max(num_frames - 16, 0)
    assert np.array_equal(starts[:-1], np.arange(len(starts) - 1) * stride)
    assert set(frame_indices(starts, num_frames).ravel()) == set(range(num_frames))


@given(frame_counts, st.integers(1, 40))
def test_the_drop_rule_leaves_the_tail_out(num_frames, stride):
    starts = window_starts(num_frames, stride, tail="drop")
    assert len(starts) == (1 if num_frames <= 16 else (num_frames - 16) // stride + 1)
    assert np.array_equal(starts, np.arange(len(starts)) * stride)
    assert starts[-1] + 16 <= max(num_frames, 16)


@given(frame_counts, st.sampled_from(TAILS))
def test_one_extraction_holds_all_three_levels(num_frames, tail):
    windows = pyramid(num_frames, tail)
    assert windows.starts.dtype == windows.low.dtype == np.int32
    assert np.array_equal(windows.starts, window_starts(num_frames, 4, tail))
    for level in LEVELS:
        assert np.array_equal(windows.starts[windows.level(level)], window_starts(num_frames, STRIDES[level], tail))


@settings(max_examples=150)
@given(st.integers(1, 3000), st.integers(16, 400), st.sampled_from(TAILS), st.sampled_from(DIRECTIONS))
def test_segments_share_out_every_window_exactly_once(num_frames, max_frames, tail, direction):
    ranges = segments(num_frames, max_frames)
    assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == num_frames
    whole = pyramid(num_frames, tail)
    found: dict[str, list[int]] = {level: [] for level in LEVELS}
    all_starts: list[int] = []
    for segment, (own_first, own_end) in enumerate(ranges):
        part, (first, end) = segment_windows(num_frames, segment, len(ranges), max_frames, tail, direction)
        assert len(part.starts) > 0
        assert first == own_first
        assert own_end <= end <= min(own_end + 15, num_frames)
        assert end - first <= max_frames + 15
        frames = frame_indices(part.starts, num_frames, direction == "reverse", first)
        assert frames.min() >= 0
        assert frames.max() < end - first
        forward_starts = frames.min(axis=1) + first
        assert np.all((own_first <= forward_starts) & (forward_starts < own_end))
        all_starts.extend(part.starts)
        for level in LEVELS:
            found[level].extend(part.starts[part.level(level)])
    assert sorted(all_starts) == whole.starts.tolist()
    for level in LEVELS:
        assert sorted(found[level]) == whole.starts[whole.level(level)].tolist()


def test_a_short_clip_repeats_its_last_frame():
    assert frame_indices(window_starts(5, 4), 5).tolist() == [[0, 1, 2, 3] + [4] * 12]
    assert frame_indices(window_starts(5, 4), 5, reverse=True).tolist() == [[4, 3, 2, 1] + [0] * 12]


@given(frame_counts)
def test_the_reversed_direction_is_the_forward_one_of_the_reversed_clip(num_frames):
    starts = pyramid(num_frames).starts
    frames = np.arange(num_frames)
    assert np.array_equal(
        frames[frame_indices(starts, num_frames, reverse=True)], frames[::-1][frame_indices(starts, num_frames)]
    )


def test_a_very_long_clip_is_planned_one_segment_at_a_time():
    part, (first, end) = segment_windows(2**31 - 1, 1000, len(segments(2**31 - 1, 2**20)), 2**20)
    assert len(part.starts) == 2**18
    assert end - first == 2**20 + 15


def test_a_plan_for_another_frame_count_is_refused():
    with pytest.raises(ModelError, match="make 2 segments; found segment 2 of 3"):
        segment_windows(100, 2, 3, 64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: window_starts(0, 4),
        lambda: window_starts(20, 0),
        lambda: pyramid(20, "pad"),
        lambda: segments(20, 15),
        lambda: segment_windows(20, 0, 1, 64, direction="backward"),
        lambda: pyramid(20).level("top"),
    ],
)
def test_what_has_no_windows_is_named(call):
    with pytest.raises(ModelError, match="found"):
        call()


def test_planning_windows_does_not_load_torch():
    code = "import sys, pthnet.windows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
