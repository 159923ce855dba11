"""The driver's end of the pipeline: gathers what was written, commits it, keeps the totals of the run."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from storage.commits import commit
from storage.plan import Plan
from tasks.shard import Written, write_recalls


@dataclass
class Totals:
    """What a run has done so far.

    Attributes
    ----------
    clips
        Clips whose features are complete.
    failed
        Clips in quarantine, by kind.
    seconds
        Summed over workers, by stage: decode, wait, forward, write; and commit, of the driver.
    """

    clips: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    segments: int = 0
    windows: int = 0
    commits: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bare_rate: float = 0.0
    batch_fill: float = 0.0
    micro_batch: int = 0
    ready_at: float = 0.0

    @property
    def tried(self) -> int:
        """Clips that ended, well or not."""
        return self.clips + sum(self.failed.values())


class Committer:
    """Makes shards and failures visible, fenced against other runs of the same extractor.

    Parameters
    ----------
    uri
        The feature table.
    application, base
        Delta application id, and its last version when the run's plan was made.
    run_id
        Recorded with every commit.
    begun
        Segments that are in the table already: (clip_id, num_segments) -> their number.
    """

    def __init__(
        self,
        uri: str,
        application: str,
        base: int,
        run_id: str,
        begun: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.uri, self.application, self.version, self.run_id = uri, application, base, run_id
        self.totals = Totals()
        self._waiting: list[Written] = []
        self._parts = Counter(begun)  # segments written of clips that have several
        self._failed: set[str] = set()
        self._committed_at = time.monotonic()

    @property
    def waiting_bytes(self) -> int:
        """Bytes written and not yet committed."""
        return sum(w.shard["size"] for w in self._waiting if w.shard)

    @property
    def waited_s(self) -> float:
        """Seconds since the last commit."""
        return time.monotonic() - self._committed_at

    def add(self, written: Written) -> None:
        """Take what one write task did into the totals and the next commit."""
        self._waiting.append(written)
        totals = self.totals
        totals.batch_fill += (written.batch_fill - totals.batch_fill) * (
            written.windows / max(totals.windows + written.windows, 1)
        )
        totals.clips += written.clips
        totals.segments += written.segments
        totals.windows += written.windows
        for stage, seconds in written.seconds.items():
            totals.seconds[stage] += seconds
        totals.bare_rate = max(totals.bare_rate, written.bare_rate)
        totals.micro_batch = min(totals.micro_batch or written.micro_batch, written.micro_batch)
        totals.ready_at = min(totals.ready_at or written.ready_at, written.ready_at)
        for clip_id, segments, count in written.parts:
            self._parts[clip_id, segments] += count
            if self._parts[clip_id, segments] == segments:
                totals.clips += 1
                del self._parts[clip_id, segments]
        for clip_id, kind in zip(*(written.quarantine[name].to_pylist() for name in ("clip_id", "kind")), strict=True):
            if clip_id not in self._failed:
                self._failed.add(clip_id)
                totals.failed[kind] += 1

    def recall(self, plan: Plan, extractor_id: str) -> int:
        """Commit that contents seen before are those of now; returns the number of clips."""
        if count := plan.recalled.num_rows + plan.refailed.num_rows:
            self._waiting.append(write_recalls(plan, uri=self.uri, extractor_id=extractor_id, run_id=self.run_id))
            self.commit()
        return count

    def commit(self) -> None:
        """Commit everything that waits, in one transaction."""
        if not self._waiting:
            return
        started = time.monotonic()
        failures = pa.concat_tables([w.quarantine for w in self._waiting])
        self.version += 1
        commit(
            self.uri,
            [w.shard for w in self._waiting if w.shard],
            failures if failures.num_rows else None,
            self.application,
            self.version,
            self.run_id,
        )
        self._waiting.clear()
        self._committed_at = time.monotonic()
        self.totals.commits += 1
        self.totals.seconds["commit"] += time.monotonic() - started
