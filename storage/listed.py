"""Clips named by a list: each row's path is looked up below a root."""

import os
from collections.abc import Iterable

from storage import files
from storage.errors import StorageError
from storage.files import Entry
from storage.lists import read_rows
from storage.sources import IMAGE_SUFFIXES, Clip, classify, stem


def clips_of_list(path: str, root: str | None) -> Iterable[Clip]:
    """The clips that the rows of a list name, in its order, each once.

    A row's uri (CSV or Parquet) may be s3:// or an absolute path; all others are looked up below root, by default the
    folder of the list, with or without suffix, as a video, a folder of frames or an image.

    Raises
    ------
    StorageError
        When rows name clips that are not there; the first few and their number are told.
    """
    rows = read_rows(path)
    top = (root or path.rpartition("/")[0] or ".").rstrip("/") or "/"
    if not files.is_s3(top):
        top = os.path.abspath(files.local_path(top))
        if not os.path.isdir(top):
            raise StorageError(f"{path}: the root {top} is not a folder; name the folder of the clips with root")
    inside: dict[str, Clip] = {}
    images: dict[str, Clip] = {}
    entries = list(files.walk(top))
    for clip in classify(entries, top):
        inside.setdefault(clip.clip_id, clip)
    for entry in entries:
        head, suffix = os.path.splitext(entry.path)
        if suffix.lower() in IMAGE_SUFFIXES:
            images[entry.path] = images[head] = _image(entry, top)
    by_uri = {clip.uri: clip for clip in inside.values()}
    found: dict[str, Clip] = {}
    missing: list[str] = []
    for row in rows:
        clip = _outside(row.uri, by_uri) if _is_absolute(row.uri) else None
        if clip is None and not _is_absolute(row.uri):
            relative = row.uri.replace("\\", "/").removeprefix("./") if row.uri else row.clip_id
            if os.path.splitext(relative)[1].lower() in IMAGE_SUFFIXES:
                clip = images.get(relative) or inside.get(stem(relative))
            else:
                clip = (
                    inside.get(relative)
                    or inside.get(stem(relative))
                    or inside.get(row.clip_id)
                    or images.get(row.clip_id)
                )
        if clip is None:
            missing.append(row.uri or row.clip_id)
            continue
        found.setdefault(row.clip_id, clip._replace(clip_id=row.clip_id))
    if missing:
        first = ", ".join(repr(name) for name in missing[:5])
        raise StorageError(
            f"{path} names {len(missing)} of {len(rows)} clips that are not below {top}: {first}"
            f"{', ...' if len(missing) > 5 else ''}; correct the list or name their folder with root"
        )
    return list(found.values())


def _is_absolute(uri: str | None) -> bool:
    return bool(uri) and (files.is_s3(uri or "") or (uri or "").startswith(("/", "file://")))


def _image(entry: Entry, top: str) -> Clip:
    content = f"{entry.tag}-{entry.size}" if files.is_s3(top) else f"{entry.size}-{entry.tag}"
    return Clip(stem(entry.path), f"{top}/{entry.path}", "image", content, entry.size)


def _outside(uri: str | None, by_uri: dict[str, Clip]) -> Clip | None:
    """A clip by absolute URI, wherever it lies."""
    from storage.sources import list_clips

    uri = uri or ""
    if (clip := by_uri.get(uri)) is not None:
        return clip
    if not files.is_s3(uri) and not os.path.exists(files.local_path(uri)):
        return None
    if files.is_s3(uri) and (entry := files.head(uri)) is not None:
        return _image(entry, uri.rpartition("/")[0])._replace(
            kind="image" if os.path.splitext(uri)[1].lower() in IMAGE_SUFFIXES else "video"
        )
    try:
        rows = list_clips([uri]).to_pylist()
    except StorageError:
        return None
    return Clip(**rows[0]) if len(rows) == 1 else None
