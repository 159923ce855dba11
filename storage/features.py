"""The feature table: one row per clip segment, partitioned by extractor, read into one contiguous array.

Rows are facts about (content, extractor) and are only ever added. A clip is visible to a reader once all segments of
one content are there; of several contents the newest complete one wins: the one extracted, or asked for again, last.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from storage import delta, files
from storage.columns import DIRECTIONS, FEATURES, KEYS, LEVELS, WINDOWS, ClipFeatures, complete, recalled
from storage.errors import StorageError
from storage.reading import Reader, newest_complete

__all__ = ["DIRECTIONS", "FEATURES", "KEYS", "LEVELS", "WINDOWS", "ClipFeatures", "FeatureTable", "complete"]


class FeatureTable:
    """The features kept at a URI (a local path or s3://bucket/prefix), to be read.

    Parameters
    ----------
    uri
        Where features/, quarantine/, extractors/ and runs/ lie.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.features_uri = files.join(self.uri, "features")

    def exists(self) -> bool:
        """Whether anything was ever committed here."""
        return delta.open_table(self.features_uri) is not None

    def version(self) -> int:
        """The newest Delta version, which pins what a reader sees; -1 for a table that is not there yet."""
        table = delta.open_table(self.features_uri)
        return -1 if table is None else int(table.version())

    def keys(self, extractor: str | None = None, *, version: int | None = None, times: bool = False) -> pa.Table:
        """Key columns of every segment: clip_id, segment, num_segments, content, extractor.

        With times also created_at, which is when its content was extracted or asked for again.
        """
        schema = KEYS.append(FEATURES.field("created_at")) if times else KEYS
        table = delta.open_table(self.features_uri, version)
        if table is None:
            return schema.empty_table()
        active = _of_extractor(delta.active_files(table), extractor)
        names = [name for name in schema.names if name != "extractor"]
        owner = active["partition.extractor"].to_pylist()

        def read(index: int, path: str) -> pa.Table:
            with delta.open_parquet(self.features_uri, path) as file:
                rows = file.read(columns=names).select(names)
            column = pa.repeat(pa.scalar(owner[index], pa.string()), rows.num_rows)
            return rows.append_column(FEATURES.field("extractor"), column).select(schema.names).cast(schema)

        with files.explained(self.uri):
            rows = pa.concat_tables([schema.empty_table(), *delta.each_file(active["path"].to_pylist(), read)])
        return recalled(rows)

    def complete(self, direction: str, extractor: str, *, version: int | None = None) -> list[str]:
        """The clips that `load` would find in a direction, sorted."""
        keys = self.keys(extractor, version=version)
        ids = keys["clip_id"].unique().sort()
        table = delta.open_table(self.features_uri, version)
        if table is None or not len(ids):
            return []
        paths = _of_extractor(delta.active_files(table), extractor)["path"].to_pylist()
        with files.explained(self.uri):
            rows = newest_complete(Reader(self.features_uri, paths, direction).index(ids), None)
        return ids.take(rows["clip"].unique()).sort().to_pylist()

    def extractors(self) -> dict[str, str]:
        """The extractors recorded here: id -> full specification (JSON)."""
        with files.explained(self.uri):
            fs, root = files.filesystem(files.join(self.uri, "extractors"))
            found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        names = sorted(info.base_name for info in found if info.base_name.endswith(".json"))
        return {
            name.removesuffix(".json"): files.read_bytes(files.join(self.uri, "extractors", name)).decode()
            for name in names
        }

    def put_extractor(self, extractor_id: str, spec: str) -> None:
        """Record an extractor's specification; the same one again changes nothing.

        Raises
        ------
        StorageError
            When another specification is recorded under this id.
        """
        uri = files.join(self.uri, "extractors", f"{extractor_id}.json")
        try:
            kept = files.read_bytes(uri).decode()
        except FileNotFoundError:
            files.write_atomic(uri, spec.encode())
            return
        if kept != spec:
            raise StorageError(f"{uri} holds another specification than the one of this run; give it another id")

    def load(
        self,
        clip_ids: Sequence[str],
        direction: str,
        extractor: str,
        version: int | None = None,
        *,
        contents: Sequence[str] | None = None,
    ) -> ClipFeatures:
        """Features of the clips named, in that order, in one contiguous array.

        Parameters
        ----------
        clip_ids
            Distinct clip ids.
        direction
            "forward" or "reverse". The other one's columns stay on disk.
        extractor
            Extractor id.
        version
            Delta version to read; the newest by default.
        contents
            The content wanted of each clip; by default the newest complete one.

        Raises
        ------
        StorageError
            For an extractor, version or clips that are not there (a clip with missing segments is not there).
        """
        if direction not in DIRECTIONS:
            raise StorageError(f"direction is 'forward' or 'reverse', not {direction!r}")
        table = delta.open_table(self.features_uri, version)
        if table is None:
            raise StorageError(f"{self.uri} holds no features; run pthnet extract first")
        active = delta.active_files(table)
        present = sorted(set(active["partition.extractor"].to_pylist()))
        if extractor not in present:
            raise StorageError(f"{self.uri} has no features of extractor {extractor!r}; present: {', '.join(present)}")
        wanted = pa.array(clip_ids, pa.string())
        if len(wanted.unique()) != len(wanted):
            raise StorageError("the clips to load are not distinct; join lists by clip id first")
        paths = _holding(_of_extractor(active, extractor), sorted(clip_ids))
        try:
            with files.explained(self.uri):
                reader = Reader(self.features_uri, paths, direction)
                rows = newest_complete(reader.index(wanted), contents)
                _check_present(rows, wanted, self.uri, direction, extractor)
                return reader.assemble(rows, list(clip_ids))
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.uri}: version {table.version()} names a file that was vacuumed ({files.scrub(str(error))}); "
                "read a newer version"
            ) from None


def _of_extractor(active: pa.Table, extractor: str | None) -> pa.Table:
    if "partition.extractor" not in active.column_names:  # a table without a file
        active = active.append_column("partition.extractor", pa.nulls(active.num_rows, pa.string()))
    return active if extractor is None else active.filter(pc.equal(active["partition.extractor"], extractor))


def _holding(active: pa.Table, wanted: list[str]) -> list[str]:
    """Paths of the files that may hold a wanted clip, by their recorded first and last clip id."""
    paths = active["path"].to_pylist()
    if "min.clip_id" not in active.column_names or not wanted:
        return paths if wanted else []
    kept = []
    for path, low, high in zip(
        paths, active["min.clip_id"].to_pylist(), active["max.clip_id"].to_pylist(), strict=True
    ):
        place = bisect_left(wanted, low) if low is not None else 0
        if low is None or high is None or (place < len(wanted) and wanted[place] <= high):
            kept.append(path)
    return kept


def _check_present(rows: pa.Table, wanted: pa.Array, uri: str, direction: str, extractor: str) -> None:
    missing = np.ones(len(wanted), bool)
    missing[rows["clip"].to_numpy()] = False
    if count := int(missing.sum()):
        first = ", ".join(repr(wanted[int(i)].as_py()) for i in np.flatnonzero(missing)[:5])
        more = ", ..." if count > 5 else ""
        raise StorageError(
            f"{uri} lacks the {direction} features by {extractor} of {count} of {len(wanted)} clips ({first}{more}); "
            "extract them, or take them off the list"
        )
