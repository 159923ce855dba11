"""The driver's commits: shards and quarantined rows become visible, fenced against another run of the same extraction.

A run reads `committed(uri, app_id)` once at its start and numbers its commits from there on, one by one. A commit whose
number does not follow the last one in the table means that another run has committed meanwhile: FencedOut.

Features are committed first, quarantine second. A crash between the two leaves failed clips in neither table, so the
next run tries them again; it never leaves a clip in both, since a reader of quarantine leaves out what has features.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage import delta, files, quarantine
from storage.columns import FEATURES
from storage.errors import FencedOut, StorageError


def committed(uri: str, app_id: str) -> int:
    """The number of the last commit of an application (data set + extractor) to the table at a URI; 0 before any."""
    table = delta.open_table(files.join(uri, "features"))
    return 0 if table is None else int(table.transaction_version(app_id) or 0)


def commit(
    uri: str,
    shards: Sequence[dict[str, Any]],
    quarantine_rows: pa.Table | None,
    app_id: str,
    app_version: int,
    run_id: str,
) -> int:
    """Make shards, and the failures of the same stretch of work, visible.

    Parameters
    ----------
    uri
        The feature table.
    shards
        What write_shard returned.
    quarantine_rows
        QUARANTINE rows, or None.
    app_id, app_version
        The fence: version = committed(uri, app_id) + 1, + 2, ... over one run. Repeating a commit of one's own is
        harmless.
    run_id
        Recorded in the log.

    Returns
    -------
    int
        Delta version of the features.

    Raises
    ------
    FencedOut
        When another run has committed under this app id since; nothing of it or of ours is lost.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import AddAction, CommitProperties, Transaction

    features_uri = files.join(uri, "features")
    table = delta.ensure_table(features_uri, FEATURES, ["extractor"])
    latest = int(table.transaction_version(app_id) or 0)
    if not (latest == app_version and _is_ours(uri, int(table.version()), app_id, app_version, run_id)):
        if latest != app_version - 1:
            raise _fenced(uri, app_id, latest, app_version)
        actions = [
            AddAction(
                shard["path"], shard["size"], shard["partition"], int(shard.get("modified", 0)), True, shard["stats"]
            )
            for shard in shards
        ]
        properties = CommitProperties(
            custom_metadata={"run_id": run_id, "app_id": app_id, "app_version": app_version},
            app_transactions=[Transaction(app_id, app_version)],
        )
        with files.explained(uri):
            for attempt in range(files.ATTEMPTS):
                try:
                    table.create_write_transaction(
                        actions, "append", table.schema(), ["extractor"], commit_properties=properties
                    )
                    break
                except (DeltaError, OSError) as error:
                    # The answer may have been lost after the commit was made; the log tells.
                    table = delta.open_table(features_uri)
                    latest = 0 if table is None else int(table.transaction_version(app_id) or 0)
                    if table is None:
                        raise
                    if latest == app_version and _is_ours(uri, int(table.version()), app_id, app_version, run_id):
                        break
                    if isinstance(error, CommitFailedError) and latest >= app_version:
                        raise _fenced(uri, app_id, latest, app_version) from None
                    if not delta.broken_off(error) or latest >= app_version or attempt == files.ATTEMPTS - 1:
                        raise
        delta.patiently(table.update_incremental)
    version = int(table.version())
    if quarantine_rows is not None and quarantine_rows.num_rows:
        quarantine.append(uri, quarantine_rows, app_id=app_id, app_version=app_version, run_id=run_id)
    return version


def _is_ours(uri: str, version: int, app_id: str, app_version: int, run_id: str) -> bool:
    """Whether this run made the commit of that number, by the last entries of the log."""
    # Read as files: the library's own history() waits for S3 with the GIL held.
    mine = {"run_id": run_id, "app_id": app_id, "app_version": app_version}
    for number in range(version, max(-1, version - 20), -1):
        try:
            text = files.read_bytes(files.join(uri, "features", "_delta_log", f"{number:020d}.json")).decode()
        except FileNotFoundError:
            return False
        infos = (json.loads(line).get("commitInfo", {}) for line in text.splitlines() if '"commitInfo"' in line)
        if any(all(info.get(name) == value for name, value in mine.items()) for info in infos):
            return True
    return False


def _fenced(uri: str, app_id: str, latest: int, app_version: int) -> FencedOut:
    return FencedOut(
        f"another run of {app_id!r} is writing to {uri} (its commit {latest} came before our {app_version}); "
        "nothing is lost: let it end, then run this command again"
    )


def replace(uri: str, removed: Sequence[dict[str, Any]], shards: Sequence[dict[str, Any]], what: str) -> int:
    """Swap files for others that hold the same visible clips (compaction, dropping stale rows). Returns the version.

    Raises
    ------
    StorageError
        When one of the files was swapped by another process meanwhile.
    """
    import time

    from deltalake.exceptions import CommitFailedError
    from deltalake.transaction import AddAction, CommitProperties, RemoveAction

    table = delta.open_table(files.join(uri, "features"))
    if table is None:
        raise StorageError(f"{uri} holds no features")
    now = int(time.time() * 1000)
    new = {shard["path"] for shard in shards}
    gone = [file for file in removed if file["path"] not in new]
    present = set(delta.active_files(table)["path"].to_pylist())
    if not {file["path"] for file in removed} <= present:
        raise StorageError(f"{uri}: another process has rewritten these files; run the command again")
    actions: list[Any] = [RemoveAction(f["path"], False, now, f["size"], f["partition"]) for f in gone]
    actions += [
        AddAction(s["path"], s["size"], s["partition"], now, False, s["stats"])
        for s in shards
        if s["path"] not in present
    ]
    with files.explained(uri):
        try:
            table.create_write_transaction(
                actions,
                "append",
                table.schema(),
                ["extractor"],
                commit_properties=CommitProperties(custom_metadata={"maintenance": what}),
            )
        except CommitFailedError:
            raise StorageError(f"{uri}: another process has rewritten these files; run the command again") from None
    delta.patiently(table.update_incremental)
    return int(table.version())
