"""Random schedules of what happens to an archive and to its runs, against a model of the table.

The parts of extraction that need no Ray: plan, cut, write, commit. A run may be killed at any of its commits.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage import maintenance, quarantine
from storage.clips import CLIPS
from storage.commits import commit, committed
from storage.errors import FencedOut
from storage.features import FeatureTable
from storage.plan import Plan
from storage.runs import new_run_id
from tasks.commit import Committer
from tasks.extract import ExtractFeatures
from tasks.segments import begun, cut, whole_rows, without_done
from tasks.shard import Written, write_rows
from tests.pipeline import account, decoded_rows, null
from workflows import extract
from workflows.extract import Settings, planned

STAGE = ExtractFeatures(null(), measure=False)
APP = f"pthnet/{null().id}"
LONG, SEGMENT = 150, 64
NAMES = st.sampled_from(["a", "b c", "ü/long", "e/long"])
DEATHS = st.sampled_from(["before the write", "before the commit", "between", "after the commit"])


class Killed(BaseException):
    """The driver is gone."""


@dataclass
class Clip:
    """A file of the archive, as it is now."""

    content: str
    good: bool


class Archive(RuleBasedStateMachine):
    """An archive, its runs, and what the table must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = tempfile.mkdtemp(prefix="schedules-")
        self.clips: dict[str, Clip] = {}
        self.written = 0
        self.former: dict[str, list[Clip]] = {}  # what each clip ever was
        self.asked: dict[tuple[str, str], int] = {}  # (clip, content) -> when it was last extracted or asked for again
        self.parts: dict[tuple[str, str], int] = {}  # its number of segments
        self.clock = 0
        self.rows: set[tuple[str, int, str]] = set()  # (clip, segment, content) that are committed
        self.tries: Counter[tuple[str, str]] = Counter()  # (clip, content) -> failures that are committed
        self.settled = False  # whether the last run ended and nothing happened since

    def teardown(self) -> None:
        shutil.rmtree(self.uri)

    @rule(name=NAMES, good=st.sampled_from([True, True, False]))
    def write_clip(self, name: str, good: bool) -> None:
        """Add a clip, or change one."""
        self.written += 1
        self.clips[name] = Clip(f"v{self.written}", good)
        self.former.setdefault(name, []).append(self.clips[name])
        self.settled = False

    @precondition(lambda self: self.former)
    @rule(data=st.data())
    def put_back_what_it_was(self, data: st.DataObject) -> None:
        """A restored backup, a branch checked out again: a content that was there before."""
        name = data.draw(st.sampled_from(sorted(self.former)))
        self.clips[name] = data.draw(st.sampled_from(self.former[name]))
        self.settled = False

    @rule(name=NAMES, good=st.booleans(), other_good=st.booleans())
    def change_and_change_back(self, name: str, good: bool, other_good: bool) -> None:
        """What chance would seldom bring about: each content is extracted before the next one is there."""
        for version in range(2):
            self.written += 1
            self.clips[name] = Clip(f"v{self.written}", good if version == 0 else other_good)
            self.former.setdefault(name, []).append(self.clips[name])
            self.settled = False
            self._run()
        self.clips[name] = self.former[name][-2]
        self._run()
        self.settled = True
        self._run()

    @rule(batch=st.integers(1, 2))
    def cut_off_in_a_long_clip(self, batch: int) -> None:
        self.written += 1
        self.clips = {"e/long": Clip(f"v{self.written}", good=True)}
        self.former.setdefault("e/long", []).append(self.clips["e/long"])
        self.settled = False
        with pytest.raises(Killed):
            self._run(0, "after the commit", batch=batch)

    @precondition(lambda self: self.clips)
    @rule(data=st.data())
    def remove_clip(self, data: st.DataObject) -> None:
        del self.clips[data.draw(st.sampled_from(sorted(self.clips)))]

    @precondition(lambda self: self.clips)
    @rule()
    def run_to_its_end(self) -> None:
        self._run()
        self.settled = True
        self._run()

    @precondition(lambda self: self.clips)
    @rule(at=st.integers(0, 2), death=DEATHS, batch=st.integers(1, 2))
    def run_that_is_killed(self, at: int, death: str, batch: int) -> None:
        try:
            self._run(at, death, batch=batch)
        except Killed:
            self.settled = False

    @precondition(lambda self: self.clips)
    @rule()
    def try_failures_again(self) -> None:
        before = sum(self.tries.values())
        standing = sum(not clip.good and self.tries[name, clip.content] > 0 for name, clip in self.clips.items())
        self._run(retry=True)
        assert sum(self.tries.values()) >= before + standing
        self.settled = True

    @precondition(lambda self: self.clips)
    @rule()
    def run_that_another_overtakes(self) -> None:
        plan = self._plan()
        self._run()
        if len(plan):
            with pytest.raises(FencedOut):
                self._commit_all(*plan)
        self.settled = True

    @precondition(lambda self: self.rows)
    @rule(drop=st.booleans())
    def tidy(self, drop: bool) -> None:
        maintenance.compact(self.uri)
        if drop:
            maintenance.drop_stale(self.uri)
            kept = FeatureTable(self.uri).keys(null().id)
            left = set(zip(*(kept[name].to_pylist() for name in ("clip_id", "segment", "content")), strict=True))
            whole = {key for key, parts in self.parts.items() if sum(row[::2] == key for row in self.rows) == parts}
            newest = {name: max((self.asked[key], key[1]) for key in whole if key[0] == name) for name, _ in whole}
            read = {row for row in self.rows if newest.get(row[0], ("", ""))[1] == row[2]}
            assert read <= left <= self.rows
            self.rows = left
        maintenance.vacuum(self.uri, grace_hours=0)

    def _plan(self, retry: bool = False) -> tuple[int, Plan, pa.Table, dict[tuple[str, int], int]] | tuple[()]:
        clips = pa.Table.from_pylist(
            [
                {"clip_id": name, "uri": name, "kind": "video", "content": clip.content, "size": 1}
                for name, clip in sorted(self.clips.items())
            ],
            schema=CLIPS,
        )
        base = committed(self.uri, APP)
        plan = planned(clips, self.uri, null(), Settings(retry_quarantined=retry))
        todo = plan.todo
        if not todo.num_rows + plan.recalled.num_rows + plan.refailed.num_rows:
            return ()
        long = [name.endswith("long") for name in todo["clip_id"].to_pylist()]
        probed = todo.append_column("num_frames", pa.array([LONG * flag for flag in long], pa.int64()))
        probed = probed.append_column("segment_frames", pa.array([SEGMENT * flag for flag in long], pa.int64()))
        keys = FeatureTable(self.uri).keys(null().id)
        rows = without_done(cut(probed), keys, null().id)
        wanted = set(zip(*(rows[name].to_pylist() for name in ("clip_id", "segment", "content")), strict=True))
        assert not wanted & self.rows, "what is there would be done again"
        return base, plan, rows, begun(todo, keys)

    def _run(self, at: int | None = None, death: str = "", retry: bool = False, batch: int = 2) -> None:
        plan = self._plan(retry)
        if self.settled and not retry:
            assert not plan, "a run after one that ended well found something to do"
        if plan:
            self._commit_all(*plan, at=at, death=death, size=batch)

    def _commit_all(
        self,
        base: int,
        plan: Plan,
        rows: pa.Table,
        parts: dict[tuple[str, int], int],
        at: int | None = None,
        death: str = "",
        size: int = 2,
    ) -> None:
        """Every few rows a shard and a commit, with a death on the way."""
        run_id = new_run_id()
        committer = Committer(self.uri, APP, base, run_id, parts)
        committer.recall(plan, null().id)
        self.clock += 1
        for row in plan.recalled.to_pylist():
            self.asked[row["clip_id"], row["content"]] = self.clock
        failed = {name: "decode_error" for name, clip in self.clips.items() if not clip.good}
        frames = {clip.content: 20 + int(clip.content[1:]) for clip in self.clips.values()}
        for number, first in enumerate(range(0, rows.num_rows, size)):
            batch = rows.slice(first, size)
            now = death if number == at else ""
            if now == "before the write":
                raise Killed
            done = STAGE(decoded_rows(batch, frames=frames, failed=failed))
            committer.add(write_rows(done, uri=self.uri, extractor_id=null().id, run_id=run_id))
            if now == "before the commit":
                raise Killed
            lost = self._commit(committer, now == "between")
            for row in batch.to_pylist():
                if row["clip_id"] not in failed:
                    self.rows.add((row["clip_id"], row["segment"], row["content"]))
                    self.clock += 1
                    self.asked[row["clip_id"], row["content"]] = self.clock
                    self.parts[row["clip_id"], row["content"]] = row["num_segments"]
                elif not lost:
                    self.tries[row["clip_id"], row["content"]] += 1
            if lost or now == "after the commit":
                raise Killed
        whole = sum(clip.good for name, clip in self.clips.items() if name in set(rows["clip_id"].to_pylist()))
        assert committer.totals.clips == whole
        assert sum(committer.totals.failed.values()) == len(set(rows["clip_id"].to_pylist()) & set(failed))

    def _commit(self, committer: Committer, cut_short: bool) -> bool:
        """Commit; True where the failures were lost on the way."""
        if not cut_short:
            committer.commit()
            return False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quarantine, "append", _die)
            try:
                committer.commit()
            except Killed:
                return True
        return False

    @invariant()
    def the_table_holds_what_was_committed_and_each_clip_once(self) -> None:
        keys = FeatureTable(self.uri).keys(null().id)
        held = set(zip(*(keys[name].to_pylist() for name in ("clip_id", "segment", "content")), strict=True))
        assert held == self.rows
        found = account(self.uri, null().id)
        tried = {key for key, count in self.tries.items() if count}
        read = quarantine.read(self.uri)
        assert set(zip(read["clip_id"].to_pylist(), read["content"].to_pylist(), strict=True)) == tried
        if not self.settled:
            return
        for name, clip in self.clips.items():
            assert found[name] == ("features" if clip.good else "decode_error")
        loaded = sorted(name for name, clip in self.clips.items() if clip.good)
        if loaded:
            contents = [self.clips[name].content for name in loaded]
            FeatureTable(self.uri).load(loaded, "forward", null().id, contents=contents)
        short = [name for name in loaded if not name.endswith("long")]
        if short:  # whoever asks for no content gets that of now
            read = FeatureTable(self.uri).load(short, "forward", null().id)
            assert read.num_frames.tolist() == [20 + int(self.clips[name].content[1:]) for name in short]


def test_what_another_run_commits_after_our_plan_fences_us_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_text("never decoded here")

    def overtaken(*arguments: Any) -> Plan:
        plan = planned(*arguments)
        commit(str(tmp_path), [], None, APP, committed(str(tmp_path), APP) + 1, "another run")
        return plan

    def pipeline(todo: pa.Table, *_: Any) -> Iterator[Written]:
        rows = STAGE(decoded_rows(cut(whole_rows(todo))))
        yield write_rows(rows, uri=str(tmp_path), extractor_id=null().id, run_id="ours")

    monkeypatch.setattr(extract, "planned", overtaken)
    monkeypatch.setattr(extract, "_pipeline", pipeline)
    with pytest.raises(FencedOut, match="another run"):
        extract.run(extract.listed([str(tmp_path)]), str(tmp_path), null())
    assert account(tmp_path, null().id) == {}


def _die(*_: object, **__: object) -> None:
    raise Killed


TestArchive = Archive.TestCase
TestArchive.settings = settings(
    max_examples=int(os.environ.get("PTHNET_SCHEDULES", "10")), stateful_step_count=12, deadline=None, derandomize=True
)
