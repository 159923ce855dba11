"""What a clip is: a video file, a folder of frames or a lone image, with its name, place and fingerprint."""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa

from storage import files
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
_VIDEO = ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .wmv .flv .3gp .ts .mts .ogv"
VIDEO_SUFFIXES = frozenset(_VIDEO.split())
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"])


class Clip(NamedTuple):
    """One row of CLIPS."""

    clip_id: str
    uri: str
    kind: str
    content: str
    size: int


def suffix_of(path: str) -> str:
    """Suffix of a path in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def stem(path: str) -> str:
    """A path without the suffix of a video or an image ("a/b.c.mp4" -> "a/b.c"; "a/b.c" stays)."""
    head, suffix = os.path.splitext(path)
    return head if suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES else path


def file_clip(path: str, clip_id: str) -> Clip:
    """A local file as a clip."""
    stat = os.stat(path)
    kind = "image" if suffix_of(path) in IMAGE_SUFFIXES else "video"
    return Clip(clip_id, os.path.abspath(path), kind, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size)


def object_clip(entry: Entry, base: str) -> Clip:
    """An S3 object below a base as a clip."""
    kind = "image" if suffix_of(entry.path) in IMAGE_SUFFIXES else "video"
    return Clip(stem(entry.path), f"{base}/{entry.path}", kind, f"{entry.tag}-{entry.size}", entry.size)


def classify(entries: Iterable[Entry], top: str) -> Iterable[Clip]:
    """The clips among the files below a root: videos, and folders of images that hold no video."""
    remote = files.is_s3(top)
    images: dict[str, list[Entry]] = {}
    with_video: set[str] = set()
    for entry in entries:
        suffix = suffix_of(entry.path)
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
    kept = (name for name in names if suffix_of(name) in IMAGE_SUFFIXES and not name.startswith("."))
    return sorted(kept, key=natural_key)


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


def clip_at(uri: str) -> Clip | None:
    """The clip at an absolute URI, wherever it lies, named after its last part; None where there is none."""
    name = stem(uri.rstrip("/").rpartition("/")[2])
    if files.is_s3(uri) and (entry := files.head(uri)) is not None:
        return object_clip(entry, uri.rpartition("/")[0])
    path = uri if files.is_s3(uri) else files.local_path(uri)
    if not files.is_s3(uri) and os.path.isfile(path):
        return file_clip(path, name)
    if files.is_s3(uri) or os.path.isdir(path):
        top = path.rstrip("/")
        frames = [clip for clip in classify(files.walk(uri), top) if clip.uri == top]
        return frames[0]._replace(clip_id=name) if frames else None
    return None
