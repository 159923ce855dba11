"""Which clips there are: files, globs, folders, S3 prefixes and lists become one table of clips with fingerprints.

A video file is a clip. A folder whose direct children are images, with no video among them, is a clip of its frames in
natural order. An image named by itself (a file, a glob, a row of a list) is a clip of one frame. clip_id is the path
relative to the source's root, "/"-separated and without suffix; the root is the folder or prefix named, the part of a
glob before its first wildcard, the folder of a single file, or what `root` says.

content is what changes when the bytes do: local "<size>-<mtime in ns>", or "sha256:<hex>" on request; S3
"<ETag>-<size>"; frames "frames:<digest of names, sizes and mtimes or ETags>".
"""

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from storage import files
from storage.clips import (
    CLIPS,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Clip,
    classify,
    file_clip,
    object_clip,
    sha256_content,
    stem,
    suffix_of,
)
from storage.errors import StorageError
from storage.files import Entry
from storage.listed import clips_of_list

LIST_SUFFIXES = frozenset([".txt", ".csv", ".parquet"])


def list_clips(sources: Sequence[str], *, root: str | None = None, fingerprint: str = "stat") -> pa.Table:
    """All clips of the sources, as CLIPS sorted by clip_id.

    Parameters
    ----------
    sources
        Video files, globs, folders (searched to any depth, hidden files left out), s3:// objects and prefixes, and
        lists (.txt, .csv, .parquet), whose rows name clips below root.
    root
        What clip ids are relative to. By default each source's own.
    fingerprint
        "stat", or "sha256" to read every local byte (S3 keeps its ETags).

    Raises
    ------
    StorageError
        When a source is missing, unreadable or holds no clip, when two clips share an id, or S3 refuses us.
    """
    if fingerprint not in ("stat", "sha256"):
        raise StorageError(f"fingerprint is 'stat' or 'sha256', not {fingerprint!r}")
    if not sources:
        raise StorageError("no source named; name video files, folders, globs, s3:// prefixes or lists")
    found: dict[str, Clip] = {}
    for source in sources:
        before = len(found)
        any_clip = False
        for clip in _clips_of(source, root):
            any_clip = True
            _add(found, clip)
        if not any_clip and len(found) == before:
            raise StorageError(
                f"{source}: no clips found; expected videos ({' '.join(sorted(VIDEO_SUFFIXES))}), "
                "folders of images, or a list of them"
            )
    clips = [found[clip_id] for clip_id in sorted(found)]
    if fingerprint == "sha256":
        clips = [_hashed(clip) for clip in clips]
    columns = list(zip(*clips, strict=True))
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, CLIPS, strict=True)], schema=CLIPS)


def _add(found: dict[str, Clip], clip: Clip) -> None:
    """Keep a clip; the same file reached twice (overlapping sources, a symbolic link beside its target) is one."""
    other = found.setdefault(clip.clip_id, clip)
    if other.uri == clip.uri or (
        not files.is_s3(clip.uri) and not files.is_s3(other.uri) and os.path.samefile(other.uri, clip.uri)
    ):
        return
    raise StorageError(
        f"two clips would be named {clip.clip_id!r}: {other.uri} and {clip.uri}; "
        "rename one, or give a common folder as root so that their names differ"
    )


def _clips_of(source: str, root: str | None) -> Iterable[Clip]:
    suffix = suffix_of(source)
    if source.startswith("list:") or (suffix in LIST_SUFFIXES and not _is_folder(source)):
        return clips_of_list(source.removeprefix("list:"), root)
    if files.is_s3(source):
        return _from_s3(source, root)
    path = files.local_path(source)
    if os.path.isdir(path):
        return _from_folder(path, root)
    if os.path.isfile(path):
        return [file_clip(path, _id(path, root or os.path.dirname(path)))]
    if any(c in path for c in "*?["):
        return _from_glob(path, root)
    raise StorageError(f"{source}: no such file or folder")


def _is_folder(source: str) -> bool:
    return not files.is_s3(source) and os.path.isdir(files.local_path(source))


def _id(path: str, root: str) -> str:
    if files.is_s3(path):
        prefix = root.rstrip("/") + "/"
        relative = path[len(prefix) :] if f"{path}/".startswith(prefix) else None
    else:
        relative = os.path.relpath(path, files.local_path(root) or ".").replace(os.sep, "/")
        relative = None if relative.startswith("../") or relative == ".." else relative
    if relative is None:
        raise StorageError(f"{path} does not lie below the root {root}; give a root that holds every source")
    if relative in (".", ""):  # the folder named is itself a clip
        relative = path.rstrip("/").rpartition("/")[2]
    return stem(relative)


def _from_folder(path: str, root: str | None) -> Iterable[Clip]:
    top = os.path.abspath(path)
    return [
        clip._replace(clip_id=_id(clip.uri, root or top))
        for clip in classify(files.walk(path), top)
    ]  # fmt: skip


def _from_glob(pattern: str, root: str | None) -> Iterable[Clip]:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    base = root or os.path.dirname(fixed) or "."
    clips: list[Clip] = []
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(path):
            # "videos/*" names the folders of frames among its matches, and what "**" passes through but once.
            clips += [c for c in _from_folder(path, base) if c.kind == "frames" or "**" not in pattern]
        elif os.path.isfile(path) and suffix_of(path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            if "**" in pattern and suffix_of(path) in IMAGE_SUFFIXES and not suffix_of(pattern):
                continue  # a frame of a folder that is a clip
            clips.append(file_clip(path, _id(path, base)))
    return clips


def _from_s3(source: str, root: str | None) -> Iterable[Clip]:
    if any(c in source for c in "*?["):
        base = re.split(r"[*?\[]", source, maxsplit=1)[0].rpartition("/")[0]
        matched = [e for e in files.walk(base) if fnmatch.fnmatchcase(f"{base}/{e.path}", source)]
        clips = [
            object_clip(entry, base) for entry in matched if suffix_of(entry.path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES
        ]
        return [clip._replace(clip_id=_id(clip.uri, root or base)) for clip in clips]
    top = source.rstrip("/")
    clips = list(classify(files.walk(source), top))
    if not clips and not source.endswith("/") and (entry := files.head(source)) is not None:
        folder = top.rpartition("/")[0]
        clips, top = [object_clip(Entry(top[len(folder) + 1 :], entry.size, entry.tag), folder)], folder
    return [clip._replace(clip_id=_id(clip.uri, root or top)) for clip in clips]


def _hashed(clip: Clip) -> Clip:
    """The clip with the SHA-256 of its local bytes for content; frames: of names and bytes in natural order."""
    if files.is_s3(clip.uri):
        return clip
    return clip._replace(content=sha256_content(clip.uri, clip.kind))
