"""The decode stage: a row in is a row out, whatever became of it."""

import errno
from pathlib import Path

import numpy as np
import pytest

from storage.errors import StorageError
from tasks import decode_rows as stage
from tasks.decode_rows import DECODED, decode_rows
from tasks.extract import frame_arrays
from tests.pipeline import planned_rows
from tests.videos import encode, read_numbers

HOW = {"image_size": 32, "timeout_s": 60.0, "whole_limit": 100}


def at(folder: Path, *names: str, **how: int):
    """Planned rows of videos in a folder, their content not checked."""
    rows = planned_rows(*((name, "") for name in names), **how)
    paths = [str(folder / f"{name}.mp4") for name in rows["clip_id"].to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("uri"), "uri", [paths])
    return rows.set_column(rows.schema.get_field_index("content"), "content", [[None] * rows.num_rows])


def test_rows_leave_in_the_order_they_came_with_frames_or_a_reason(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=20, size=(64, 48))
    encode(tmp_path / "long.mp4", frames=101)
    (tmp_path / "bad.mp4").write_text("no video")
    out = decode_rows(at(tmp_path, "a", "bad", "long", "gone"), **HOW)
    assert out.schema == DECODED
    assert out["clip_id"].to_pylist() == ["a", "bad", "long", "gone"]
    assert out["fail_kind"].to_pylist() == [None, "decode_error", "frame_count_mismatch", "missing"]
    assert out["status"].to_pylist() == ["ok", "failed", "failed", "failed"]
    assert all((detail is None) == (kind is None) for detail, kind in zip(out["detail"], out["fail_kind"], strict=True))
    frames = frame_arrays(out)
    assert [len(part) for part in frames] == [20, 0, 0, 0]
    assert frames[0].shape == (20, 32, 32, 3)
    assert read_numbers(frames[0]) == list(range(20))
    assert (out["width"][0].as_py(), out["height"][0].as_py(), out["num_frames"][0].as_py()) == (64, 48, 20)


def test_a_segment_gets_the_frames_of_its_windows_and_no_more(tmp_path: Path) -> None:
    encode(tmp_path / "long.mp4", frames=150)
    rows = at(tmp_path, "long", num_frames=150, segment_frames=64)
    out = decode_rows(rows, **HOW)
    frames = frame_arrays(out)
    assert out["num_frames"].to_pylist() == [150] * out.num_rows
    for part, first in zip(frames, out["first_frame"].to_pylist(), strict=True):
        assert read_numbers(part) == list(range(first, first + len(part)))
        assert len(part) <= 64 + 16 + 15
    assert {number for part in frames for number in read_numbers(part)} == set(range(150))


def test_a_clip_with_another_length_than_planned_fails(tmp_path: Path) -> None:
    encode(tmp_path / "long.mp4", frames=100)
    out = decode_rows(at(tmp_path, "long", num_frames=150, segment_frames=64), **HOW)
    assert set(out["fail_kind"].to_pylist()) == {"frame_count_mismatch"}


def test_a_full_disk_for_copies_is_nobodys_failure_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def decode(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "_pool", lambda *_: Full())
    with pytest.raises(StorageError, match=r"no space left for copies of clips in .*; free some or set TMPDIR"):
        decode_rows(planned_rows(("a", "c")), **HOW)


def test_another_error_of_the_machine_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crowded:
        def decode(self, _: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(stage, "_pool", lambda *_: Crowded())
    with pytest.raises(OSError, match="Too many open files"):
        decode_rows(planned_rows(("a", "c")), **HOW)


def test_frames_are_handed_on_as_they_are(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=5, size=(80, 48))
    out = decode_rows(at(tmp_path, "a"), **{**HOW, "image_size": None})
    (frames,) = frame_arrays(out)
    assert frames.shape == (5, 48, 80, 3)
    assert frames.dtype == np.uint8


def test_a_block_is_decoded_a_few_rows_at_a_time_and_handed_on_as_it_goes(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=3)
    (tmp_path / "bad.mp4").write_text("no video")
    parts = stage.in_parts(at(tmp_path, "a", "a", "bad"), decode=decode_rows, part_rows=2, **HOW)
    assert next(parts)["status"].to_pylist() == ["ok", "ok"]
    (tmp_path / "bad.mp4").unlink()  # not looked at yet
    assert next(parts)["fail_kind"].to_pylist() == ["missing"]
    assert not list(parts)
