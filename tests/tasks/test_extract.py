"""The forward stage: features of a row do not depend on its company, and failures pass through as rows."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pthnet.windows import pyramid
from storage.columns import LEVELS
from tasks.decode import Decoded
from tasks.decode_rows import attach
from tasks.extract import EXTRACTED, ExtractFeatures
from tests.pipeline import decoded_rows, null, planned_rows, tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stage() -> ExtractFeatures:
    return ExtractFeatures(tiny(), measure=False)


def moving(*frames: int) -> pa.Table:
    """DECODED rows of noise, one clip for each number of frames."""
    rows = planned_rows(*((f"clip{i}", "c") for i in range(len(frames))))
    made = [RNG.integers(0, 256, (count, 64, 64, 3), np.uint8) for count in frames]
    facts: dict[str, Any] = {"fps": 25.0, "width": 64, "height": 64, "decoder": "none"}
    return attach(rows, [Decoded(frames=part, num_frames=len(part), **facts) for part in made], [0] * len(frames))


def matrix(table: pa.Table, row: int, direction: str) -> np.ndarray:
    windows = table[direction][row].as_py()
    return np.array(windows["features"], np.float32).reshape(len(windows["starts"]), -1)


def test_every_row_has_the_windows_of_its_length(stage: ExtractFeatures) -> None:
    out = stage(moving(1, 15, 16, 17, 40))
    assert out.schema == EXTRACTED
    assert out["status"].to_pylist() == ["ok"] * 5
    for row, frames in enumerate((1, 15, 16, 17, 40)):
        expected = pyramid(frames)
        for direction in ("forward", "reverse"):
            windows = out[direction][row].as_py()
            assert windows["starts"] == expected.starts.tolist()
            assert all(windows[level] == expected.level(level).tolist() for level in LEVELS)
            assert matrix(out, row, direction).shape == (len(expected.starts), tiny().dim)
    assert out["windows"].to_pylist() == [2 * len(pyramid(frames).starts) for frames in (1, 15, 16, 17, 40)]


def test_a_clip_gets_the_same_features_alone_as_in_company(stage: ExtractFeatures) -> None:
    rows = moving(24, 33, 5, 60)
    together = stage(rows)
    for row in range(4):
        alone = stage(rows.slice(row, 1))
        for direction in ("forward", "reverse"):
            assert np.array_equal(matrix(alone, 0, direction), matrix(together, row, direction))
    small = ExtractFeatures(tiny(), measure=False, frames_per_pass=1)(rows)  # each clip a pass of its own
    assert small["forward"].to_pylist() == together["forward"].to_pylist()


def test_reverse_is_the_forward_features_of_the_reversed_frames(stage: ExtractFeatures) -> None:
    frames = RNG.integers(0, 256, (37, 64, 64, 3), np.uint8)
    facts: dict[str, Any] = {"num_frames": 37, "fps": 25.0, "width": 64, "height": 64, "decoder": "none"}
    both = [Decoded(frames=frames, **facts), Decoded(frames=frames[::-1].copy(), **facts)]
    out = stage(attach(planned_rows(("a", "c"), ("b", "c")), both, [0, 0]))
    assert np.array_equal(matrix(out, 0, "reverse"), matrix(out, 1, "forward"))
    assert np.array_equal(matrix(out, 0, "forward"), matrix(out, 1, "reverse"))


def test_a_failed_row_passes_through_and_costs_its_neighbours_nothing(stage: ExtractFeatures) -> None:
    rows = moving(20, 20)
    bad = decoded_rows(planned_rows(("bad", "c")), failed={"bad": "decode_crash"})
    out = stage(pa.concat_tables([rows.slice(0, 1), bad, rows.slice(1, 1)]))
    assert out["status"].to_pylist() == ["ok", "failed", "ok"]
    assert out["fail_kind"].to_pylist() == [None, "decode_crash", None]
    assert out["stage"].to_pylist()[1] == "decode"
    assert out["forward"][1].as_py() is None
    alone = stage(rows)
    for row, kept in ((0, 0), (1, 2)):
        assert np.array_equal(matrix(alone, row, "forward"), matrix(out, kept, "forward"))


def test_a_batch_of_failures_only_is_a_batch(stage: ExtractFeatures) -> None:
    rows = planned_rows(("a", "c"), ("b", "c"))
    out = stage(decoded_rows(rows, failed={"a": "empty", "b": "missing"}))
    assert out["fail_kind"].to_pylist() == ["empty", "missing"]
    assert out["windows"].to_pylist() == [0, 0]


def test_one_direction_leaves_the_other_null() -> None:
    extractor = dataclasses.replace(null(), directions=("reverse",))
    out = ExtractFeatures(extractor, measure=False)(decoded_rows(planned_rows(("a", "c"))))
    assert out["forward"][0].as_py() is None
    assert out["reverse"][0].as_py()["starts"] == [0, 4]
    assert out["windows"].to_pylist() == [2]


def test_segments_together_have_each_window_of_the_whole_once() -> None:
    rows = decoded_rows(planned_rows(("long", "c"), num_frames=203, segment_frames=64))
    out = ExtractFeatures(null(), measure=False)(rows)
    for direction in ("forward", "reverse"):
        starts = [start for row in out[direction].to_pylist() for start in row["starts"]]
        assert sorted(starts) == pyramid(203).starts.tolist()


def test_numbers_that_are_none_are_a_failure(stage: ExtractFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = moving(20, 20)
    plain = stage.backbone.extract

    def overflowing(*arguments: Any) -> list[np.ndarray]:
        found = plain(*arguments)
        found[1][0, 0] = np.inf
        return found

    monkeypatch.setattr(stage.backbone, "extract", overflowing)
    out = stage(rows)
    assert out["fail_kind"].to_pylist() == [None, "not_finite"]
    assert out["stage"].to_pylist()[1] == "forward"
    assert "--precision fp32" in out["detail"][1].as_py()
    assert out["forward"][1].as_py() is None
