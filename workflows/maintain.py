"""Looking after a feature table: small files merged, what nobody needs deleted.

pthnet compact features/
pthnet vacuum features/
"""

import json as json_module


def compact(features: str, /, *, target_mb: int = 128, json: bool = False) -> int:
    """Merge small files into larger ones. What readers see stays the same; the old files go with pthnet vacuum.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    target_mb
        Size of the merged files, in millions of bytes.
    json
        Print one JSON object.
    """
    from storage.errors import StorageError
    from storage.maintenance import compact as merge

    if target_mb < 1:
        raise StorageError(f"--target-mb is a size of 1 or more, found {target_mb}")
    before, after = merge(features, target_bytes=target_mb * 1_000_000)
    if json:
        print(json_module.dumps({"features": features, "files_before": before, "files_after": after}))
    else:
        print(f"{features}: {before} files before, {after} after")
    return 0


def vacuum(
    features: str,
    /,
    *,
    grace_hours: float = 168.0,
    keep_version: list[int] | None = None,
    drop_stale: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Delete files that no reader needs: those that were replaced, and shards that were written and never committed.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    grace_hours
        Younger files stay: a run that is going on, or a reader of a recent version, may need them.
    keep_version
        Versions of the table that must stay readable, what a model was trained on, say.
    drop_stale
        First take out the rows of clips whose content has changed since. Their files go after the grace period.
    dry_run
        Say what would be deleted, delete nothing.
    json
        Print one JSON object.
    """
    from storage import maintenance

    stale = 0
    if drop_stale and dry_run:
        stale = sum(held.stale for held in maintenance.status(features).extractors.values())
    elif drop_stale:
        stale = maintenance.drop_stale(features)
    gone = maintenance.vacuum(features, grace_hours=grace_hours, keep_versions=keep_version or (), dry_run=dry_run)
    if json:
        print(json_module.dumps({"features": features, "dry_run": dry_run, "stale": stale, "files": gone}))
        return 0
    would = "would be " if dry_run else ""
    if drop_stale:
        print(f"{stale} stale {'clips' if dry_run else 'rows'} {would}taken out")
    print(f"{len(gone)} files {would}deleted")
    for path in gone[:20] if dry_run else ():
        print(f"  {path}")
    return 0
