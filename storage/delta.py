"""The Delta tables behind features and quarantine: make, open, list their files, read some columns of them.

Files are read with pyarrow's own filesystems rather than through the Delta library's dataset, which was seen to abort
the process at exit.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.errors import StorageError

T = TypeVar("T")
_THREADS = 8  # files read side by side: S3 answers slowly, but many at once
_CONFIGURATION = {
    "delta.checkpointInterval": "50",
    # A version pins what a training read, so the log is not thrown away after the usual 30 days.
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}


def broken_off(error: BaseException) -> bool:
    """Whether S3 broke an answer off in its body, where the library's own retries end."""
    return isinstance(error, OSError) and any(words in str(error) for words in ("response body", "reading a body"))


def patiently(action: Callable[[], T]) -> T:
    """action(), which may be done twice, tried again when S3 breaks its answer off."""
    for attempt in range(files.ATTEMPTS - 1):
        try:
            return action()
        except OSError as error:
            if not broken_off(error):
                raise
            time.sleep(min(0.1 * 2**attempt, 5.0))
    return action()


def open_table(uri: str, version: int | None = None) -> Any | None:
    """The Delta table at a URI, at its newest or the given version; None where there is none."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    with files.explained(uri):
        try:
            options = files.delta_options(uri)
            return patiently(lambda: DeltaTable(files.delta_uri(uri), version=version, storage_options=options))
        except TableNotFoundError:
            return None
        except DeltaError as error:
            if version is not None and "version" in str(error).lower():
                raise StorageError(f"{uri} has no version {version}") from None
            raise


def ensure_table(uri: str, schema: pa.Schema, partition_by: Sequence[str] = ()) -> Any:
    """The Delta table at a URI, made if need be. Safe when several processes make it at once."""
    from deltalake import DeltaTable, Schema
    from deltalake.exceptions import DeltaError

    if (table := open_table(uri)) is not None:
        return table
    with files.explained(uri):
        try:
            return DeltaTable.create(
                files.delta_uri(uri),
                schema=Schema.from_arrow(schema),
                mode="ignore",
                partition_by=list(partition_by),
                configuration=dict(_CONFIGURATION),
                storage_options=files.delta_options(uri),
            )
        except (DeltaError, OSError):
            # Another process may have made it between our look and our commit.
            if (table := open_table(uri)) is not None:
                return table
            raise


def active_files(table: Any) -> pa.Table:
    """The files of a table's version: path, size_bytes, num_records, and, where known, min.*, max.*, partition.*."""
    return pa.table(table.get_add_actions(flatten=True))


def each_file(paths: Sequence[str], read: Callable[[int, str], T]) -> list[T]:
    """read(index, path) for every file, several at a time, results in order."""
    if len(paths) <= 1:
        return [read(i, path) for i, path in enumerate(paths)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, range(len(paths)), paths))


def open_parquet(uri: str, path: str) -> pq.ParquetFile:
    """A Parquet file of the table at a URI, by the path in its log."""
    from urllib.parse import unquote

    with files.explained(uri):
        fs, root = files.filesystem(uri)
        # pre_buffer: one S3 request for the wanted columns of a row group instead of one per column.
        return pq.ParquetFile(fs.open_input_file(f"{root}/{unquote(path)}"), pre_buffer=files.is_s3(uri))
