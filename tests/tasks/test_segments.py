"""Clips into segments: short ones whole, long ones cut where the count is exact, half-done ones continued."""

from pathlib import Path

import pyarrow as pa
import pytest

from pthnet.windows import segments
from tasks.segments import SEGMENTS, SegmentLimits, begun, blocks, cut, probe_rows, whole_rows, without_done
from tests import videos
from tests.videos import encode


def clips(*rows: tuple[str, str], kind: str = "video", attempt: int = 1) -> pa.Table:
    names = ["clip_id", "uri", "kind", "content", "attempt"]
    values = [[clip_id for clip_id, _ in rows], [uri for _, uri in rows], [kind] * len(rows), ["c"] * len(rows)]
    return pa.table([*values, pa.array([attempt] * len(rows), pa.int32())], names=names)


def lengths(table: pa.Table, frames: list[int], most: list[int]) -> pa.Table:
    table = table.append_column("num_frames", pa.array(frames, pa.int64()))
    return table.append_column("segment_frames", pa.array(most, pa.int64()))


def keys(*rows: tuple[str, int, int, str]) -> pa.Table:
    """Of features by extractor "e": clip_id, segment, num_segments, content."""
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    kinds = [pa.string(), pa.int32(), pa.int32(), pa.string()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    names = ["clip_id", "segment", "num_segments", "content", "extractor"]
    return pa.table([*arrays, pa.array(["e"] * len(rows), pa.string())], names=names)


def test_a_short_clip_is_one_segment_and_a_long_one_several_in_order() -> None:
    rows = cut(lengths(clips(("a", "u"), ("long", "u"), ("z", "u")), [0, 200, 0], [0, 64, 0]))
    assert rows.schema == SEGMENTS
    count = len(segments(200, 64))
    assert rows["clip_id"].to_pylist() == ["a", *["long"] * count, "z"]
    assert rows["segment"].to_pylist() == [0, *range(count), 0]
    assert rows["num_segments"].to_pylist() == [1, *[count] * count, 1]


def test_cutting_nothing_gives_nothing() -> None:
    assert cut(whole_rows(clips())).num_rows == 0


def test_only_a_clip_that_is_truly_long_is_cut(tmp_path: Path) -> None:
    encode(tmp_path / "long.mp4", frames=90)
    encode(tmp_path / "short.mp4", frames=64)
    videos.image_folder(tmp_path / "pictures", 70, size=(8, 8))
    (tmp_path / "text.mp4").write_text("no video")
    limits = SegmentLimits(frames=64)
    paths = [(name, str(tmp_path / name)) for name in ("long.mp4", "short.mp4", "text.mp4", "gone.mp4")]
    probed = probe_rows(clips(*paths), limits, 32)
    assert probed["num_frames"].to_pylist() == [90, 0, 0, 0]
    assert probed["segment_frames"].to_pylist() == [64, 0, 0, 0]
    pictures = probe_rows(clips(("p", str(tmp_path / "pictures")), kind="frames"), limits, 32)
    assert pictures["num_frames"].to_pylist() == [70]


def test_large_frames_make_short_segments_but_never_shorter_than_a_few_windows() -> None:
    limits = SegmentLimits(frames=512, bytes=256 << 20)
    assert limits.frames_at(224, 224) == 512
    assert limits.frames_at(640, 480) == (256 << 20) // (640 * 480 * 3) == 291
    assert limits.frames_at(16000, 16000) == 64
    assert limits.frames_at(0, 0) == 512


def test_segments_that_are_there_are_not_done_again() -> None:
    rows = cut(lengths(clips(("long", "u"), ("a", "u")), [200, 0], [64, 0]))
    count = rows.num_rows - 1
    done = keys(("long", 1, count, "c"), ("long", 0, count, "other"), ("long", 2, count + 1, "c"), ("b", 0, 1, "c"))
    left = without_done(rows, done, "e")
    assert left.schema == SEGMENTS
    # A row of other bytes, or of another cut, is no help.
    assert sorted(zip(left["clip_id"].to_pylist(), left["segment"].to_pylist(), strict=True)) == [
        ("a", 0),
        *(("long", segment) for segment in range(count) if segment != 1),
    ]
    assert without_done(rows, done, "another").num_rows == rows.num_rows
    assert without_done(rows, keys(), "e").num_rows == rows.num_rows


def test_what_is_begun_is_counted_by_clip_content_and_cut() -> None:
    done = keys(("long", 0, 3, "c"), ("long", 1, 3, "c"), ("long", 0, 4, "c"), ("long", 2, 3, "old"), ("x", 0, 2, "c"))
    assert begun(clips(("long", "u"), ("a", "u")), done) == {("long", 3): 2, ("long", 4): 1}
    assert begun(clips(("long", "u")), keys()) == {}


@pytest.mark.parametrize(("rows", "parallelism"), [(0, 2), (1, 2), (40, 2), (10_000, 16)])
def test_blocks_hold_every_row_once_and_are_small(rows: int, parallelism: int) -> None:
    table = pa.table({"row": list(range(rows))})
    made = blocks(table, parallelism)
    assert [value for block in made for value in block["row"].to_pylist()] == list(range(rows))
    assert all(1 <= block.num_rows <= 64 for block in made)
    assert len(made) >= min(rows, parallelism)
