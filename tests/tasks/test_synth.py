"""The synthetic archive: reproducible clips, classes that only the direction of time tells apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.decode import decode_segment
from tasks.face import CLASSES, PLAYED_BACKWARDS, clip_frames
from tasks.synth import draw_clip, plan_clip, render_clip


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
@pytest.mark.parametrize(("name", "other"), PLAYED_BACKWARDS.items())
def test_two_pairs_of_classes_differ_in_the_direction_of_time_only(name: str, other: str, difficulty: str) -> None:
    how = {"num_frames": 20, "width": 96, "height": 112, "difficulty": difficulty}
    backwards = clip_frames(np.random.default_rng(3), name, **how)
    assert np.array_equal(backwards[::-1], clip_frames(np.random.default_rng(3), other, **how))


def test_classes_look_different() -> None:
    middles = [clip_frames(np.random.default_rng(3), n, num_frames=21, width=96, height=96)[-1] for n in CLASSES]
    for i, a in enumerate(middles):
        for b in middles[:i]:
            assert np.abs(a.astype(int) - b).mean() > 2


def test_clips_vary_in_length_size_and_rate_and_classes_take_turns() -> None:
    clips = [plan_clip(0, i, "easy") for i in range(700)]
    assert Counter(c.label for c in clips) == dict.fromkeys(range(7), 100)
    lengths = [c.num_frames for c in clips]
    assert min(lengths) >= 12
    assert max(lengths) <= 60
    assert min(lengths) < 16
    assert len({(c.width, c.height) for c in clips}) > 10
    assert len({c.fps for c in clips}) > 2


def test_a_clip_follows_from_seed_and_index() -> None:
    clip = plan_clip(5, 9, "hard")
    assert clip == plan_clip(5, 9, "hard")
    assert np.array_equal(draw_clip(clip), draw_clip(plan_clip(5, 9, "hard")))
    assert not np.array_equal(draw_clip(plan_clip(6, 9, "hard"))[0, :90, :90], draw_clip(clip)[0, :90, :90])


def test_a_rendered_clip_is_a_real_video_of_the_drawing(tmp_path: Path) -> None:
    clip = plan_clip(0, 4, "easy")
    assert render_clip(clip, tmp_path) == (tmp_path / f"{clip.clip_id}.mp4").stat().st_size
    decoded = decode_segment(str(tmp_path / f"{clip.clip_id}.mp4"))
    assert decoded.frames is not None
    assert (decoded.num_frames, decoded.width, decoded.height) == (clip.num_frames, clip.width, clip.height)
    assert decoded.fps == pytest.approx(clip.fps)
    assert np.abs(decoded.frames.astype(int) - draw_clip(clip)).mean() < 6


def test_the_same_clip_is_encoded_to_the_same_bytes(tmp_path: Path) -> None:
    clip = plan_clip(3, 5, "easy")
    encoded = set()
    for run in range(6):
        np.random.default_rng(run).integers(0, 255, 50_000 * (run + 1), np.uint8)  # leave other bytes in freed memory
        render_clip(clip, tmp_path / str(run))
        encoded.add((tmp_path / str(run) / f"{clip.clip_id}.mp4").read_bytes())
    assert len(encoded) == 1
