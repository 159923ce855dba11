import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import commits, maintenance
from storage.columns import recall_rows
from storage.errors import StorageError
from storage.features import FeatureTable
from storage.shards import write_shard
from tests.storage.rows import EPOCH, row, table, windows


def commit(uri: str, *shards: pa.Table, extractor: str = "e-1") -> int:
    app = f"app {extractor}"
    added = [write_shard(shard, uri, extractor) for shard in shards]
    return commits.commit(uri, added, None, app, commits.committed(uri, app) + 1, "run")


def vectors(features, index):
    return features.features[features.offsets[index] : features.offsets[index + 1]]


def test_clips_come_back_in_the_order_asked_in_one_contiguous_array(tmp_path):
    uri = str(tmp_path / "table")
    commit(uri, table(row("b", forward=windows([0, 4], 10)), row("a", forward=windows([0], 20))), table(row("c")))
    got = FeatureTable(uri).load(["c", "a", "b"], "forward", "e-1")
    assert got.features.dtype == np.float32
    assert got.features.flags.c_contiguous
    assert got.num_windows.tolist() == [3, 1, 2]
    assert got.offsets.tolist() == [0, 3, 4, 6]
    assert vectors(got, 1).round(3).tolist() == np.float32([[20, 20.001, 20.002, 20.003]]).tolist()
    assert vectors(got, 2)[:, 0].tolist() == [10, 14]
    assert got.starts.tolist() == [0, 4, 8, 0, 0, 4]
    assert got.middle.tolist() == [0, 2, 0, 0]
    assert got.middle_offsets.tolist() == [0, 2, 3, 4]
    assert got.num_frames.tolist() == [24, 24, 24]


def test_segments_are_joined_by_their_first_window_in_each_direction(tmp_path):
    uri = str(tmp_path)
    parts = [
        row("long", segment=0, num_segments=3, forward=windows([0, 4]), reverse=windows([20, 24], 100)),
        row("long", segment=1, num_segments=3, forward=windows([8, 12]), reverse=windows([12, 16], 100)),
        row("long", segment=2, num_segments=3, forward=windows([]), reverse=windows([0, 4, 8], 100)),
    ]
    commit(uri, table(parts[2], parts[0]), table(parts[1]))
    forward = FeatureTable(uri).load(["long"], "forward", "e-1")
    reverse = FeatureTable(uri).load(["long"], "reverse", "e-1")
    assert forward.starts.tolist() == [0, 4, 8, 12]
    assert forward.high.tolist() == [0, 1, 2, 3]
    assert reverse.starts.tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert reverse.features[:, 0].tolist() == [100, 104, 108, 112, 116, 120, 124]


def test_a_clip_with_a_missing_segment_is_not_visible(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("whole"), row("part", segment=1, num_segments=2)))
    with pytest.raises(StorageError, match=r"lacks the forward features by e-1 of 1 of 2 clips \('part'\)"):
        FeatureTable(uri).load(["whole", "part"], "forward", "e-1")


def test_the_newest_complete_content_wins_and_a_content_can_be_asked_for(tmp_path):
    uri = str(tmp_path)
    old = row("a", content="old", at=1, forward=windows([0], 1))
    new = row("a", content="new", at=2, forward=windows([0], 2))
    half = row("a", content="half", at=3, num_segments=2, forward=windows([0], 3))
    commit(uri, table(old), table(new, half))
    assert FeatureTable(uri).load(["a"], "forward", "e-1").features[0, 0] == 2
    assert FeatureTable(uri).load(["a"], "forward", "e-1", contents=["old"]).features[0, 0] == 1


def test_a_content_that_is_recalled_is_the_newest_again(tmp_path):
    uri = str(tmp_path)
    old = [row("a", segment=s, num_segments=2, content="old", at=1, forward=windows([8 * s], 1)) for s in (0, 1)]
    new = row("a", content="new", at=2, forward=windows([0], 2))
    before = commit(uri, table(*old), table(new, row("b")))

    def recall(content: str, at: int, run: str) -> None:
        rows = recall_rows(table(row("a", content=content)), "e-1", EPOCH + timedelta(seconds=at))
        shard = write_shard(rows, uri, "e-1", run_id=run)
        commits.commit(uri, [shard], None, "app e-1", commits.committed(uri, "app e-1") + 1, run)

    def read(**how: int) -> tuple[list[float], list[str]]:
        got = FeatureTable(uri).load(["b", "a"], "forward", "e-1", **how)
        return got.features[got.offsets[1] :, 0].tolist(), FeatureTable(uri).complete("reverse", "e-1")

    assert read()[0] == [2]
    recall("old", 3, "r1")
    assert read() == ([1, 9], ["a", "b"])
    recall("new", 4, "r2")
    assert read()[0] == [2]
    recall("old", 5, "r3")  # as in r1, but a later one
    assert read()[0] == [1, 9]
    assert read(version=before)[0] == [2]
    maintenance.compact(uri)
    assert read()[0] == [1, 9]
    keys = FeatureTable(uri).keys(times=True)
    assert sorted(zip(keys["clip_id"].to_pylist(), keys["content"].to_pylist(), strict=True)) == [
        ("a", "new"), ("a", "old"), ("a", "old"), ("b", "c0"),
    ]  # fmt: skip
    assert maintenance.drop_stale(uri) == 2  # the other content and its recall
    assert read()[0] == [1, 9]


def test_a_version_pins_what_is_read(tmp_path):
    uri = str(tmp_path)
    first = commit(uri, table(row("a", at=1, forward=windows([0], 1))))
    commit(uri, table(row("a", content="c1", at=2, forward=windows([0], 2))))
    assert FeatureTable(uri).load(["a"], "forward", "e-1", version=first).features[0, 0] == 1
    assert FeatureTable(uri).load(["a"], "forward", "e-1").features[0, 0] == 2
    with pytest.raises(StorageError, match="no version 99"):
        FeatureTable(uri).load(["a"], "forward", "e-1", version=99)


def test_what_is_not_there_is_named(tmp_path):
    empty = FeatureTable(str(tmp_path / "none"))
    assert empty.version() == -1
    assert empty.keys().num_rows == 0
    with pytest.raises(StorageError, match="holds no features"):
        empty.load(["a"], "forward", "e-1")
    uri = str(tmp_path / "t")
    commit(uri, table(row("a", reverse=None)))
    with pytest.raises(StorageError, match="no features of extractor 'other'; present: e-1"):
        FeatureTable(uri).load(["a"], "forward", "other")
    with pytest.raises(StorageError, match="reverse features"):
        FeatureTable(uri).load(["a"], "reverse", "e-1")
    with pytest.raises(StorageError, match="not distinct"):
        FeatureTable(uri).load(["a", "a"], "forward", "e-1")


def test_reading_one_direction_leaves_the_other_on_disk(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a")))
    path = next((tmp_path / "features").rglob("*.parquet"))
    damaged = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.startswith("reverse"):
            first = column.dictionary_page_offset or column.data_page_offset
            damaged[first : first + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(damaged)
    assert FeatureTable(uri).load(["a"], "forward", "e-1").starts.tolist() == [0, 4, 8]
    with pytest.raises(OSError):  # noqa: PT011
        FeatureTable(uri).load(["a"], "reverse", "e-1")


def test_files_that_cannot_hold_a_wanted_clip_are_not_opened(tmp_path):
    uri = str(tmp_path)
    commit(uri, table(row("a"), row("c")), table(row("x"), row("z")))
    for path in (tmp_path / "features").rglob("*.parquet"):
        if pq.read_table(path, columns=["clip_id"])["clip_id"][0].as_py() == "x":
            path.unlink()
    assert FeatureTable(uri).load(["c", "a"], "forward", "e-1").clip_ids == ["c", "a"]
    with pytest.raises(StorageError, match="vacuumed"):
        FeatureTable(uri).load(["x"], "forward", "e-1")


def test_an_extractor_is_recorded_once_under_its_id(tmp_path):
    kept = FeatureTable(str(tmp_path))
    kept.put_extractor("e-1", '{"stride": 4}')
    kept.put_extractor("e-1", '{"stride": 4}')
    assert kept.extractors() == {"e-1": '{"stride": 4}'}
    with pytest.raises(StorageError, match="another specification"):
        kept.put_extractor("e-1", '{"stride": 8}')


def test_a_reader_process_ends_cleanly(tmp_path):
    commit(str(tmp_path), table(row("a")))
    code = "import sys; from storage.features import FeatureTable as T; T(sys.argv[1]).keys(); "
    code += "T(sys.argv[1]).load(['a'], 'forward', 'e-1')"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_the_same_table_reads_the_same_from_s3(s3):
    uri = f"s3://{s3.bucket()}/deep/table"
    commit(uri, table(row("a")), table(row("b"), row("ü b/ç")))
    kept = FeatureTable(uri)
    kept.put_extractor("e-1", "{}")
    assert kept.extractors() == {"e-1": "{}"}
    assert kept.version() == 1
    assert sorted(kept.keys("e-1")["clip_id"].to_pylist()) == ["a", "b", "ü b/ç"]
    assert kept.load(["ü b/ç", "a"], "reverse", "e-1").features[:, 0].tolist() == [100, 104, 108] * 2


stored_row = st.fixed_dictionaries(
    {
        "clip": st.sampled_from("abcd"),
        "content": st.sampled_from(["c0", "c1"]),
        "num_segments": st.integers(1, 3),
        "segment": st.integers(0, 2),
        "at": st.integers(0, 5),
        "size": st.integers(0, 3),
        "reverse": st.booleans(),
    }
)


def model(rows, clip, direction):
    """What a reader must see of a clip: [(start, value)], or None."""
    mine = [r for r in rows if r["clip_id"] == clip and r[direction] is not None]
    best = None
    for content, parts in {(r["content"], r["num_segments"]) for r in mine}:
        newest = {}
        for r in mine:
            if (r["content"], r["num_segments"]) == (content, parts) and r["segment"] < parts:
                held = newest.get(r["segment"])
                if held is None or r["created_at"] > held["created_at"]:
                    newest[r["segment"]] = r
        if len(newest) == parts:
            key = (max(r["created_at"] for r in newest.values()), content, parts)
            if best is None or key > best[0]:
                best = (key, newest)
    if best is None:
        return None
    pairs = []
    for r in best[1].values():
        part = r[direction]
        pairs += zip(part["starts"], np.float32(part["features"]).reshape(-1, 4)[:, 0].tolist(), strict=True)
    return sorted(pairs)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(shards=st.lists(st.lists(stored_row, min_size=1, max_size=6), min_size=1, max_size=3), data=st.data())
def test_a_reader_sees_what_a_plain_model_of_the_table_sees(tmp_path_factory, shards, data):
    uri = str(tmp_path_factory.mktemp("t"))
    rows, stored = [], []
    serial = 0
    for shard in shards:
        made = []
        for r in shard:
            serial += 1
            base = r["segment"] * 12
            starts = [base + 4 * i for i in range(r["size"])]
            made.append(
                row(
                    r["clip"], segment=r["segment"], num_segments=r["num_segments"], content=r["content"],
                    forward=windows(starts, value=1000.0 * serial),
                    reverse=windows([60 - s for s in reversed(starts)], value=500.0 * serial) if r["reverse"] else None,
                    # No two rows are made in the same microsecond.
                    created_at=EPOCH + timedelta(seconds=r["at"], microseconds=serial),
                )
            )  # fmt: skip
        rows += made
        stored.append(table(*made))
    commit(uri, *stored)
    kept = FeatureTable(uri)
    for direction in ("forward", "reverse"):
        truth = {clip: model(rows, clip, direction) for clip in "abcd"}
        visible = data.draw(st.permutations([clip for clip in "abcd" if truth[clip] is not None]))
        got = kept.load(visible, direction, "e-1")
        for index, clip in enumerate(visible):
            begin, end = got.offsets[index : index + 2]
            pairs = zip(got.starts[begin:end].tolist(), got.features[begin:end, :1].ravel().tolist(), strict=True)
            assert list(pairs) == truth[clip]
            high = got.high[got.high_offsets[index] : got.high_offsets[index + 1]]
            assert high.tolist() == list(range(end - begin))
        for clip in set("abcd") - set(visible):
            with pytest.raises(StorageError, match="lacks"):
                kept.load([clip], direction, "e-1")
