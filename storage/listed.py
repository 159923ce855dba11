"""Clips named by a list: each row's path is looked up below a root."""

import os
from collections.abc import Iterable

from storage import files
from storage.clips import IMAGE_SUFFIXES, Clip, classify, clip_at, stem, suffix_of
from storage.errors import StorageError
from storage.files import Entry
from storage.lists import read_rows


def clips_of_list(path: str, root: str | None) -> Iterable[Clip]:
    """The clips that the rows of a list name, in its order, each once.

    A row's uri (CSV or Parquet) may be s3:// or an absolute path; all others are looked up below root, by default the
    folder of the list, with or without suffix, as a video, a folder of frames or an image.

    Raises
    ------
    StorageError
        When rows name clips that are not there; the first few and their number are told.
    """
    top = (root or path.rpartition("/")[0] or ".").rstrip("/") or "/"
    if not files.is_s3(top):
        top = os.path.abspath(files.local_path(top))
        if not os.path.isdir(top):
            raise StorageError(f"{path}: the root {top} is not a folder; name the folder of the clips with root")
    rows = read_rows(path, strip=top)
    inside: dict[str, Clip] = {}
    images: dict[str, Clip] = {}
    entries = list(files.walk(top))
    for known in classify(entries, top):
        inside.setdefault(known.clip_id, known)
    for entry in entries:
        head, suffix = os.path.splitext(entry.path)
        if suffix.lower() in IMAGE_SUFFIXES:
            images[entry.path] = images[head] = _image(entry, top)
    by_uri = {clip.uri: clip for clip in inside.values()}
    found: dict[str, Clip] = {}
    missing: list[str] = []
    for row in rows:
        clip: Clip | None
        if row.uri and (files.is_s3(row.uri) or row.uri.startswith(("/", "file://"))):
            clip = by_uri.get(row.uri) or clip_at(row.uri)
            # A list that was written on another machine: its paths begin elsewhere, its clip ids are ours.
            clip = clip or inside.get(row.clip_id)
        else:
            path = (row.uri or row.clip_id).replace("\\", "/").removeprefix("./").rstrip("/")
            named = [path, stem(path), row.clip_id]
            places = (images, inside) if suffix_of(path) in IMAGE_SUFFIXES else (inside, images)
            clip = next((place[name] for place in places for name in named if name in place), None)
        if clip is None:
            missing.append(row.uri or row.clip_id)
            continue
        other = found.setdefault(row.clip_id, clip._replace(clip_id=row.clip_id))
        if other.uri != clip.uri:
            raise StorageError(
                f"{path}, line {row.line}: {row.clip_id!r} names both {other.uri} and {clip.uri}; rename one"
            )
    if missing:
        first = ", ".join(repr(name) for name in missing[:5])
        raise StorageError(
            f"{path} names {len(missing)} of {len(rows)} clips that are not below {top}: {first}"
            f"{', ...' if len(missing) > 5 else ''}; correct the list or name their folder with root"
        )
    return list(found.values())


def _image(entry: Entry, top: str) -> Clip:
    content = f"{entry.tag}-{entry.size}" if files.is_s3(top) else f"{entry.size}-{entry.tag}"
    return Clip(stem(entry.path), f"{top}/{entry.path}", "image", content, entry.size)
