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
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from storage import files
from storage.errors import StorageError
from storage.files import Entry

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),  # video, frames or image
        ("content", pa.string()),
        ("size", pa.int64()),  # bytes
    ]
)
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".ogv"]
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"])
LIST_SUFFIXES = frozenset([".txt", ".csv", ".parquet"])


class Clip(NamedTuple):
    """One row of CLIPS."""

    clip_id: str
    uri: str
    kind: str
    content: str
    size: int


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
    from storage.listed import clips_of_list

    suffix = _suffix(source)
    if source.startswith("list:") or (suffix in LIST_SUFFIXES and not _is_folder(source)):
        return clips_of_list(source.removeprefix("list:"), root)
    if files.is_s3(source):
        return _from_s3(source, root)
    path = files.local_path(source)
    if os.path.isdir(path):
        return _from_folder(path, root)
    if os.path.isfile(path):
        return [_single(path, _id(path, root or os.path.dirname(path)))]
    if any(c in path for c in "*?["):
        return _from_glob(path, root)
    raise StorageError(f"{source}: no such file or folder")


def _is_folder(source: str) -> bool:
    return not files.is_s3(source) and os.path.isdir(files.local_path(source))


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def stem(path: str) -> str:
    """A path without the suffix of a video or an image ("a/b.c.mp4" -> "a/b.c"; "a/b.c" stays)."""
    head, suffix = os.path.splitext(path)
    return head if suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES else path


def _id(path: str, root: str) -> str:
    if files.is_s3(path):
        prefix = root.rstrip("/") + "/"
        relative = path[len(prefix) :] if path.startswith(prefix) else None
    else:
        relative = os.path.relpath(path, files.local_path(root) or ".").replace(os.sep, "/")
        relative = None if relative.startswith("../") or relative == ".." else relative
    if relative is None:
        raise StorageError(f"{path} does not lie below the root {root}; give a root that holds every source")
    if relative in (".", ""):  # the folder named is itself a clip
        relative = path.rstrip("/").rpartition("/")[2]
    return stem(relative)


def _single(path: str, clip_id: str) -> Clip:
    stat = os.stat(path)
    kind = "image" if _suffix(path) in IMAGE_SUFFIXES else "video"
    return Clip(clip_id, os.path.abspath(path), kind, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size)


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
        elif os.path.isfile(path) and _suffix(path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            if "**" in pattern and _suffix(path) in IMAGE_SUFFIXES and not _suffix(pattern):
                continue  # a frame of a folder that is a clip
            clips.append(_single(path, _id(path, base)))
    return clips


def _from_s3(source: str, root: str | None) -> Iterable[Clip]:
    if any(c in source for c in "*?["):
        base = re.split(r"[*?\[]", source, maxsplit=1)[0].rpartition("/")[0]
        matched = [e for e in files.walk(base) if fnmatch.fnmatchcase(f"{base}/{e.path}", source)]
        clips = [_object(entry, base) for entry in matched if _suffix(entry.path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
        return [clip._replace(clip_id=_id(clip.uri, root or base)) for clip in clips]
    top = source.rstrip("/")
    clips = list(classify(files.walk(source), top))
    if not clips and not source.endswith("/") and (entry := files.head(source)) is not None:
        folder = top.rpartition("/")[0]
        clips, top = [_object(Entry(top[len(folder) + 1 :], entry.size, entry.tag), folder)], folder
    return [clip._replace(clip_id=_id(clip.uri, root or top)) for clip in clips]


def _object(entry: Entry, base: str) -> Clip:
    kind = "image" if _suffix(entry.path) in IMAGE_SUFFIXES else "video"
    return Clip(stem(entry.path), f"{base}/{entry.path}", kind, f"{entry.tag}-{entry.size}", entry.size)


def classify(entries: Iterable[Entry], top: str) -> Iterable[Clip]:
    """The clips among the files below a root: videos, and folders of images that hold no video."""
    remote = files.is_s3(top)
    images: dict[str, list[Entry]] = {}
    with_video: set[str] = set()
    for entry in entries:
        suffix = _suffix(entry.path)
        folder = entry.path.rpartition("/")[0]
        if suffix in VIDEO_SUFFIXES:
            with_video.add(folder)
            content = f"{entry.tag}-{entry.size}" if remote else f"{entry.size}-{entry.tag}"
            yield Clip(stem(entry.path), f"{top}/{entry.path}", "video", content, entry.size)
        elif suffix in IMAGE_SUFFIXES:
            images.setdefault(folder, []).append(entry)
    for folder, frames in images.items():
        if folder not in with_video:  # else a poster beside its video
            uri = f"{top}/{folder}" if folder else top
            yield Clip(folder, uri, "frames", frames_content(frames), sum(frame.size for frame in frames))


def frames_content(frames: Iterable[Entry]) -> str:
    """Fingerprint of a folder of frames: names, sizes and tags (mtime or ETag)."""
    lines = sorted(f"{frame.path.rpartition('/')[2]}\0{frame.size}\0{frame.tag}\n" for frame in frames)
    return f"frames:{hashlib.blake2b(''.join(lines).encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}"


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key by which frame_2 comes before frame_10."""
    parts = [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in re.split(r"(\d+)", name) if p]
    return parts, name


def frame_names(names: Iterable[str]) -> list[str]:
    """The images among file names, hidden ones left out, in natural order."""
    kept = (name for name in names if _suffix(name) in IMAGE_SUFFIXES and not name.startswith("."))
    return sorted(kept, key=natural_key)


def _hashed(clip: Clip) -> Clip:
    """The clip with the SHA-256 of its local bytes for content; frames: of names and bytes in natural order."""
    if files.is_s3(clip.uri):
        return clip
    return clip._replace(content=sha256_content(clip.uri, clip.kind))


def sha256_content(path: str, kind: str) -> str:
    """Fingerprint "sha256:..." of a local clip."""
    hasher = hashlib.sha256()
    names = frame_names(os.listdir(path)) if kind == "frames" else [""]
    with files.explained(path):
        for name in names:
            hasher.update(f"{name}\0".encode("utf-8", "surrogateescape") if name else b"")
            with open(os.path.join(path, name) if name else path, "rb") as file:
                while block := file.read(1 << 20):
                    hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"
