"""From Parquet files to one contiguous array: find the rows, choose among them, read their features into place.

Two passes, neither with work per row in Python: the small columns first, so that the result can be allocated once and
every row group copied straight to where it belongs. Peak memory is the result and a row group per reading thread.
"""

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import delta
from storage.columns import FEATURES, LEVELS, RECALL, ClipFeatures
from storage.errors import StorageError


class Reader:
    """Reads one direction out of some files of a feature table."""

    def __init__(self, features_uri: str, paths: list[str], direction: str) -> None:
        self.uri = features_uri
        self.paths = paths
        self.direction = direction

    def index(self, wanted: pa.Array) -> pa.Table:
        """All columns but the features, of the wanted clips' rows and recalls, with the place of each (file, row)."""
        names = ["clip_id", "segment", "num_segments", "content", "created_at", "num_frames", "fps"]
        lists = ["starts", *LEVELS]

        def read(index: int, path: str) -> pa.Table:
            with delta.open_parquet(self.uri, path) as file:
                rows = file.read(columns=[*names, *(f"{self.direction}.{name}" for name in lists)])
            windows = rows[self.direction].combine_chunks()
            columns = {name: rows[name] for name in names}
            columns |= {name: windows.field(name) for name in lists}
            columns["clip"] = pc.index_in(rows["clip_id"], value_set=wanted)
            columns["file"] = pa.array(np.full(len(windows), index, np.int32))
            columns["row"] = pa.array(np.arange(len(windows)))
            filled = pc.or_(windows.is_valid(), pc.equal(rows["segment"], RECALL))
            keep = pc.and_(pc.is_valid(columns["clip"]), filled)
            return pa.table(columns).filter(keep).drop_columns(["clip_id"])

        empty = {name: pa.array([], FEATURES.field(name).type) for name in names[1:]}
        empty |= {name: pa.array([], pa.list_(pa.int32())) for name in lists}
        empty |= {"clip": pa.array([], pa.int32()), "file": pa.array([], pa.int32()), "row": pa.array([], pa.int64())}
        schema = pa.table(empty).schema
        read_rows = [part.select(schema.names).cast(schema) for part in delta.each_file(self.paths, read)]
        return pa.concat_tables([schema.empty_table(), *read_rows]).combine_chunks()

    def assemble(self, rows: pa.Table, clip_ids: list[str]) -> ClipFeatures:
        """Read the features of the chosen rows (sorted by clip, then start) straight to their place."""
        count = len(clip_ids)
        clip = rows["clip"].to_numpy()
        lengths = pc.list_value_length(rows["starts"]).to_numpy().astype(np.int64)
        offsets_by_row = np.concatenate([[0], np.cumsum(lengths)])
        num_windows = np.bincount(clip, lengths, minlength=count).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(num_windows)])
        base = offsets_by_row[:-1] - offsets[clip]  # windows of the clip before this row
        levels = {}
        for level in LEVELS:
            sizes = pc.list_value_length(rows[level]).to_numpy().astype(np.int64)
            levels[level] = (_flat(rows[level]) + np.repeat(base, sizes)).astype(np.int32)
            sums = np.bincount(clip, sizes, minlength=count).astype(np.int64)
            levels[f"{level}_offsets"] = np.concatenate([[0], np.cumsum(sums)])
        first = np.searchsorted(clip, np.arange(count))
        return ClipFeatures(
            clip_ids=clip_ids,
            num_windows=num_windows,
            offsets=offsets,
            features=self._features(rows, lengths, offsets_by_row, clip_ids),
            starts=_flat(rows["starts"]),
            num_frames=rows["num_frames"].to_numpy()[first],
            fps=rows["fps"].to_numpy()[first],
            **levels,
        )

    def _features(
        self,
        rows: pa.Table,
        lengths: np.ndarray,
        targets: np.ndarray,
        clip_ids: list[str],
    ) -> np.ndarray:
        file_of, row_of, clip_of = (rows[name].to_numpy() for name in ("file", "row", "clip"))
        out: list[np.ndarray] = []
        lock = threading.Lock()

        def target(dim: int) -> np.ndarray:
            with lock:
                if not out:
                    out.append(np.empty((int(targets[-1]), dim), np.float32))
                return out[0]

        def read(index: int, path: str) -> None:
            chosen = np.flatnonzero(file_of == index)
            if not len(chosen):
                return
            chosen = chosen[np.argsort(row_of[chosen])]
            with delta.open_parquet(self.uri, path) as file:
                sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
                bounds = np.concatenate([[0], np.cumsum(sizes)])
                cuts = np.searchsorted(row_of[chosen], bounds)
                for group in range(len(sizes)):
                    part = chosen[cuts[group] : cuts[group + 1]]
                    if not lengths[part].any():
                        continue
                    read_table = file.read_row_group(group, columns=[f"{self.direction}.features"])
                    column = read_table[self.direction].combine_chunks().field("features")
                    begins = column.offsets.to_numpy().astype(np.int64)
                    local = row_of[part] - bounds[group]
                    floats = begins[local + 1] - begins[local]
                    widest = int(np.argmax(lengths[part]))
                    result = target(int(floats[widest] // lengths[part][widest]))
                    dim = result.shape[1]
                    if wrong := np.flatnonzero(floats != lengths[part] * dim).tolist():
                        bad = part[wrong[0]]
                        raise StorageError(
                            f"{path}: clip {clip_ids[clip_of[bad]]!r} has {int(floats[wrong[0]])} numbers for "
                            f"{int(lengths[bad])} windows of {dim}; extract it again"
                        )
                    # The lists' values are one float array: a [W, dim] view of it, and one indexed copy per row group.
                    origin = int(begins[0])
                    view = column.values.to_numpy()[origin : origin + (int(begins[-1]) - origin) // dim * dim]
                    source = _ranges((begins[local] - origin) // dim, lengths[part])
                    result[_ranges(targets[part], lengths[part])] = view.reshape(-1, dim)[source]

        delta.each_file(self.paths, read)
        return out[0] if out else np.empty((0, 0), np.float32)


def newest_complete(rows: pa.Table, contents: Sequence[str] | None) -> pa.Table:
    """One row per segment of the newest complete content of each clip, sorted by clip and then first start."""
    if contents is not None:
        asked = pa.array(contents, pa.string()).take(rows["clip"].combine_chunks())
        rows = rows.filter(pc.equal(rows["content"], asked))
    if not rows.num_rows:
        return rows
    clip, segment, parts = (rows[name].to_numpy() for name in ("clip", "segment", "num_segments"))
    created = rows["created_at"].cast(pa.int64()).to_numpy()
    content = pc.rank(rows["content"], tiebreaker="dense").to_numpy().astype(np.int64)

    # Sorted by (clip, content, num_segments, segment), newest first: the first of each key is the one kept.
    order = np.lexsort((-created, segment, parts, content, clip))
    order = order[(segment[order] >= 0) & (segment[order] < parts[order])]
    order = order[_firsts(clip[order], content[order], parts[order], segment[order])]
    heads = np.flatnonzero(_firsts(clip[order], content[order], parts[order]))
    if not len(heads):
        return rows.slice(0, 0)
    sizes = np.diff(np.append(heads, len(order)))
    newest = np.maximum.reduceat(created[order], heads)

    lead = order[heads]
    if (segment == RECALL).any():
        _recall(newest, lead, clip.astype(np.int64) * (content.max() + 1) + content, segment == RECALL, created)
    whole = np.flatnonzero(sizes == parts[lead])
    best = whole[np.lexsort((-parts[lead[whole]], -content[lead[whole]], -newest[whole], clip[lead[whole]]))]
    best = best[_firsts(clip[lead[best]])]
    chosen = order[_ranges(heads[best], sizes[best])]

    starts = rows["starts"].combine_chunks()
    begins = starts.offsets.to_numpy()
    flat = starts.values.to_numpy()
    filled = begins[1:] > begins[:-1]
    first = np.zeros(len(starts), np.int64)
    first[filled] = flat[begins[:-1][filled]]
    # In the reversed order the last segment's windows come first.
    return rows.take(chosen[np.lexsort((segment[chosen], first[chosen], clip[chosen]))]).combine_chunks()


def _recall(newest: np.ndarray, lead: np.ndarray, pair: np.ndarray, recalls: np.ndarray, created: np.ndarray) -> None:
    """Raise the time of each group, led by the row `lead`, to that of the last recall of its (clip, content) pair."""
    known, place = np.unique(pair[recalls], return_inverse=True)
    at = np.zeros(len(known), np.int64)
    np.maximum.at(at, place, created[recalls])
    found = np.minimum(np.searchsorted(known, pair[lead]), len(known) - 1)
    hit = known[found] == pair[lead]
    newest[hit] = np.maximum(newest[hit], at[found[hit]])


def _firsts(*keys: np.ndarray) -> np.ndarray:
    """Whether each element of sorted keys differs from the one before it."""
    new = np.ones(len(keys[0]), bool)
    if len(new):
        new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return new


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(column).to_numpy().astype(np.int32, copy=False)


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of begins[i] .. begins[i] + lengths[i] - 1, range after range."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
