from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import commits, quarantine
from storage.columns import recall_rows, recalled
from storage.features import KEYS, FeatureTable
from storage.plan import plan
from storage.runs import new_run_id, read_runs, write_run
from storage.shards import write_shard
from storage.sources import CLIPS
from tests.storage.rows import EPOCH, failed, row, table


def clips(**contents):
    rows = [{"clip_id": k, "uri": f"/{k}.mp4", "kind": "video", "content": v, "size": 1} for k, v in contents.items()]
    return pa.Table.from_pylist(rows, schema=CLIPS)


def keys(*rows):
    return table(*rows).select(KEYS.names)


NONE = quarantine.QUARANTINE.empty_table()


def test_new_changed_and_known_clips_are_told_apart():
    made = plan(clips(a="c0", b="c1", c="c0"), keys(row("a"), row("b", content="c0")), NONE, "e-1")
    assert made.counts == {"new": 1, "changed": 1, "retried": 0, "known": 1, "quarantined": 0}
    assert made.todo["clip_id"].to_pylist() == ["b", "c"]
    assert made.todo["attempt"].to_pylist() == [1, 1]
    assert made.todo.schema.names == [*CLIPS.names, "attempt"]


def test_a_new_extractor_does_everything_again():
    assert plan(clips(a="c0"), keys(row("a")), NONE, "e-2").counts["new"] == 1


def test_a_clip_of_which_a_segment_is_missing_is_done_again():
    made = plan(clips(a="c0"), keys(row("a", num_segments=2)), NONE, "e-1")
    assert made.counts["new"] == 1
    both = keys(row("a", num_segments=2), row("a", segment=1, num_segments=2), row("a", segment=1, num_segments=2))
    assert plan(clips(a="c0"), both, NONE, "e-1").counts["known"] == 1


def test_a_failed_clip_is_tried_until_its_attempts_are_used_up_and_again_on_request():
    bad = failed("a", attempt=2)
    once = plan(clips(a="c0"), keys(), bad, "e-1", max_attempts=2)
    assert (once.counts["quarantined"], once.todo.num_rows) == (1, 0)
    more = plan(clips(a="c0"), keys(), bad, "e-1", max_attempts=3)
    assert (more.counts["retried"], more.todo["attempt"].to_pylist()) == (1, [3])
    asked = plan(clips(a="c0"), keys(), bad, "e-1", retry_quarantined=True)
    assert asked.todo["attempt"].to_pylist() == [3]
    repaired = plan(clips(a="c9"), keys(), bad, "e-1", max_attempts=1)
    assert (repaired.counts["changed"], repaired.todo["attempt"].to_pylist()) == (1, [1])


@pytest.mark.parametrize("detour", ["features", "failure"])
def test_a_clip_that_went_to_another_content_and_back_is_made_the_newest_again(detour):
    there = [row("a", content="c0", at=1), row("b", at=1)]
    other = failed("a", content="c1", at=2) if detour == "failure" else NONE
    if detour == "features":
        there.append(row("a", content="c1", at=2))
    back = plan(clips(a="c0", b="c0"), table(*there), other, "e-1")
    assert (back.counts["known"], back.todo.num_rows) == (2, 0)
    assert (back.recalled["clip_id"].to_pylist(), back.refailed.num_rows) == (["a"], 0)
    rows = table(*there, *recall_rows(back.recalled, "e-1", EPOCH + timedelta(seconds=3)).to_pylist())
    again = plan(clips(a="c0", b="c0"), recalled(rows), other, "e-1")
    assert (again.todo.num_rows, again.recalled.num_rows, again.refailed.num_rows) == (0, 0, 0)


def test_a_clip_that_went_back_to_a_content_that_failed_has_failed_again():
    there = table(row("a", content="good", at=2))
    bad = pa.concat_tables([failed("a", content="bad", attempt=n, at=at) for n, at in ((1, 0), (2, 1))])
    back = plan(clips(a="bad"), there, bad, "e-1", max_attempts=2)
    assert (back.counts["quarantined"], back.todo.num_rows, back.recalled.num_rows) == (1, 0, 0)
    assert back.refailed["attempt"].to_pylist() == [2]
    stamped = failed("a", content="bad", attempt=2, at=3)
    again = plan(clips(a="bad"), there, pa.concat_tables([bad, stamped]), "e-1", max_attempts=2)
    assert (again.counts["quarantined"], again.refailed.num_rows) == (1, 0)
    assert quarantine.standing(pa.concat_tables([bad, stamped]), there)["content"].to_pylist() == ["bad"]


def test_nothing_to_do_is_an_empty_plan():
    assert plan(CLIPS.empty_table(), keys(), NONE, "e-1").todo.num_rows == 0


def test_ten_thousand_known_clips_are_a_no_op(tmp_path):
    uri, count = str(tmp_path), 10_000
    rows = table(row("x", forward=None, reverse=None)).take(np.zeros(count, np.int64))
    ids = pa.array([f"Crime/Angry/{i:05d}" for i in range(count)])
    rows = rows.set_column(0, "clip_id", ids)
    commits.commit(
        uri, [write_shard(rows.slice(i, 1000), uri, "e-1") for i in range(0, count, 1000)], None, "a", 1, "r"
    )
    listed = pa.table([ids, ids, ["video"] * count, ["c0"] * count, pa.array([1] * count, pa.int64())], schema=CLIPS)
    made = plan(listed, FeatureTable(uri).keys("e-1"), quarantine.read(uri), "e-1")
    assert made.counts["known"] == count
    assert made.todo.num_rows == 0


steps = st.lists(
    st.tuples(st.sampled_from(["change", "run", "cut", "remove", "break", "repair", "retry"]), st.sampled_from("abc")),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=steps)
def test_under_any_schedule_every_clip_ends_in_exactly_one_place_and_a_rerun_is_a_no_op(tmp_path_factory, steps):
    """Clips are added, changed, removed, broken and repaired between runs, some of which are cut before a commit."""
    uri = str(tmp_path_factory.mktemp("t"))
    sources, broken, clock = {"a": "c0"}, set(), [0]

    def run(*, cut=False, retry=False):
        made = plan(
            clips(**sources), FeatureTable(uri).keys(), quarantine.read(uri), "e-1", retry_quarantined=retry
        )  # fmt: skip
        todo = made.todo.to_pylist()
        clock[0] += 1
        good = [row(c["clip_id"], content=c["content"], at=clock[0]) for c in todo if c["clip_id"] not in broken]
        shards = [write_shard(table(r), uri, "e-1") for r in good]
        bad = [
            failed(c["clip_id"], content=c["content"], attempt=c["attempt"], at=clock[0])
            for c in todo
            if c["clip_id"] in broken
        ]
        if not cut and todo:
            commits.commit(
                uri,
                shards,
                pa.concat_tables(bad) if bad else None,
                "app",
                commits.committed(uri, "app") + 1,
                str(clock),
            )
        return made

    for serial, (what, clip) in enumerate(steps):
        if what in ("change", "break", "repair"):
            sources[clip] = f"content {serial}"
            (broken.add if what == "break" else broken.discard)(clip)
        elif what == "remove":
            sources.pop(clip, None)
        else:
            run(cut=what == "cut", retry=what == "retry")
    run()
    assert run().todo.num_rows == 0
    table_keys = FeatureTable(uri).keys(times=True)
    in_quarantine = quarantine.standing(quarantine.read(uri), table_keys)["clip_id"].to_pylist()
    done = {(k["clip_id"], k["content"]) for k in table_keys.to_pylist()}
    for clip, content in sources.items():
        assert ((clip, content) in done) != (clip in in_quarantine)
        assert in_quarantine.count(clip) == (clip in broken)


def test_runs_are_kept_oldest_first(tmp_path):
    uri = str(tmp_path)
    assert read_runs(uri) == []
    write_run(uri, "2", {"clips": 4, "name": "ü"})
    write_run(uri, "1", {"clips": 3})
    assert read_runs(uri) == [{"run_id": "1", "clips": 3}, {"run_id": "2", "clips": 4, "name": "ü"}]
    assert read_runs(uri, last=1)[0]["run_id"] == "2"
    assert new_run_id() != new_run_id()


def test_a_summary_in_s3_is_read_back(moto):
    uri = f"s3://{moto.bucket()}/t"
    assert read_runs(uri) == []
    write_run(uri, "r", {"clips": 1})
    assert read_runs(uri) == [{"run_id": "r", "clips": 1}]


@pytest.mark.parametrize("newer", [True, False])
def test_only_a_newer_failure_stands_against_features_of_another_content(newer):
    good = table(row("a", content="good", created_at=EPOCH + timedelta(seconds=5)))
    bad = failed("a", content="bad", at=9 if newer else 1)
    assert quarantine.standing(bad, good).num_rows == newer
