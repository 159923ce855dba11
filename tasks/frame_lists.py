"""The lists of the frame models as one table: clips that are folders of frames, single images, and Aff-Wild2's videos.

read_frames("train.txt", root="faces/", labels=label_map("dfew"))        # "folder frames label" a line
read_frames("train.csv", root="images/", labels=label_map("rafdb"))      # filePath,expression
read_frames("EXPR/Train/", root="cropped_aligned/", labels=label_map("affwild2"), first_frame=1)
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from pthnet.emotions import LabelMap, emotion
from pthnet.errors import ModelError
from storage import files
from storage.clips import IMAGE_SUFFIXES
from storage.errors import StorageError
from storage.lists import read_rows

# One row is one sample: a clip (uri is its folder, frames its listed length) or an image (frames is 1).
# video, frame: the clip's or image's id and -1, or the video and the number of a frame in it.
# label: index of the class, -1 unlabelled. present: False where the video has no face image for the frame.
FRAMES = pa.schema(
    [
        ("video", pa.string()),
        ("frame", pa.int32()),
        ("uri", pa.string()),
        ("frames", pa.int32()),
        ("label", pa.int32()),
        ("present", pa.bool_()),
    ]
)


def read_frames(
    path: str, *, root: str | None = None, labels: LabelMap, first_frame: int = 1, sample: str | None = None
) -> pa.Table:
    """Read a list in any of the three forms.

    Parameters
    ----------
    path
        A text or CSV list, one EXPR annotation file, or a folder of EXPR annotation files.
    root
        Where the folders, images or videos lie. Paths that begin elsewhere (another machine's absolute path, a Windows
        drive) are cut until they exist below it. None: the paths are used as they stand.
    labels
        What the list's numbers and words mean.
    first_frame
        EXPR files only: the number of the frame that the first label belongs to, 0 or 1.
    sample
        "clip" or "image": refuse a list of the other kind.

    Returns
    -------
    pa.Table
        FRAMES, in the order of the list.
    """
    path = str(path)
    found = _annotation_files(path)
    if found:
        table = _read_expr(found, root, labels, first_frame)
    else:
        table = _read_list(path, root, labels)
    kind = "clip" if is_clips(table) else "image"
    if sample is not None and sample != kind:
        raise StorageError(
            f"{path} lists {kind}s, this model takes {sample}s; use r3d_18 for clips, resnet18 or swin_s for images"
        )
    return table


def is_clips(table: pa.Table) -> bool:
    """Whether the rows are clips (folders of frames) rather than images."""
    return (table.schema.metadata or {}).get(b"sample") == b"clip"


def frames_of_videos(root: str, *, first_frame: int = 1) -> pa.Table:
    """Every folder below `root` as an unlabelled video, for prediction; its last image is its last frame."""
    fs, top = files.filesystem(root)
    try:
        entries = fs.get_file_info(pafs.FileSelector(top))
    except FileNotFoundError:
        raise StorageError(f"{root}: no such folder") from None
    videos = sorted(entry.base_name for entry in entries if entry.type == pafs.FileType.Directory)
    parts = []
    for video in videos:
        images = _numbered_images(files.join(root, video))
        last = max(images, default=first_frame - 1)
        parts.append(_video(video, files.join(root, video), images, np.full(last - first_frame + 1, -1), first_frame))
    if not parts:
        raise StorageError(f"{root} holds no folders of face images; expected {root}/<video>/00001.jpg and so on")
    return _with_kind(pa.concat_tables(parts), "image")


def relocate(paths: Sequence[str], root: str | None) -> list[str]:
    r"""Paths of a list as they are found below `root`.

    The first path decides how many leading parts are cut ("D:\data\DFEW\clips\00001" -> root/clips/00001); all lose as
    many.
    """
    plain = [re.sub(r"^[A-Za-z]:", "", path.strip().replace("\\", "/")) for path in paths]
    if root is None:
        return plain
    fs, top = files.filesystem(root)
    first = [part for part in plain[0].split("/") if part not in ("", ".")]
    for cut in range(len(first)):
        if fs.get_file_info("/".join([top, *first[cut:]])).type != pafs.FileType.NotFound:
            split = ([part for part in path.split("/") if part not in ("", ".")] for path in plain)
            return [files.join(root, *parts[cut:]) for parts in split]
    raise StorageError(f"neither {paths[0]!r} nor any ending of it exists below {root}; give the folder that holds it")


def _read_list(path: str, root: str | None, labels: LabelMap) -> pa.Table:
    rows = read_rows(path)
    if any(row.uri is None for row in rows):
        raise StorageError(f"{path} names no files; expected a column filePath, or '<folder> <frames> <label>' lines")
    uris = relocate([str(row.uri) for row in rows], root)
    is_image = [PurePosixPath(uri).suffix.lower() in IMAGE_SUFFIXES for uri in uris]
    if any(is_image) and not all(is_image):
        odd = uris[is_image.index(not is_image[0])]
        raise StorageError(f"{path} mixes folders of frames with images (the first: {odd}); split it into two lists")
    numbers = [_label(labels, row.label, path, row.line) for row in rows]
    table = pa.table(
        {
            "video": [row.clip_id for row in rows],
            "frame": np.full(len(rows), -1, np.int32),
            "uri": uris,
            "frames": [1 if is_image[0] else (row.count or 0) for row in rows],
            "label": numbers,
            "present": np.ones(len(rows), bool),
        },
        schema=FRAMES,
    )
    return _with_kind(table, "image" if is_image[0] else "clip")


def _label(labels: LabelMap, token: str | None, path: str, line: int) -> int:
    try:
        return -1 if token is None else labels.index(token)
    except ModelError as error:
        raise StorageError(f"{path}, line {line}: {error}") from None


def _annotation_files(path: str) -> list[str]:
    """EXPR annotation files: the .txt files of a folder, or the file itself when it begins with class names."""
    fs, place = files.filesystem(path)
    info = fs.get_file_info(place)
    if info.type == pafs.FileType.Directory:
        names = sorted(e.base_name for e in fs.get_file_info(pafs.FileSelector(place)) if e.base_name.endswith(".txt"))
        if not names:
            raise StorageError(f"{path} holds no .txt annotation files")
        return [files.join(path, name) for name in names]
    if info.type == pafs.FileType.NotFound:
        raise StorageError(f"{path}: no such list")
    if not place.endswith(".txt"):
        return []
    with fs.open_input_stream(place) as stream:
        first = stream.read(4096).decode("utf-8-sig", "replace").splitlines()[:1]
    words = [emotion(word) for word in first[0].split(",")] if first else []
    return [path] if {"neutral", "happiness"} <= set(words) else []


def _read_expr(paths: list[str], root: str | None, labels: LabelMap, first_frame: int) -> pa.Table:
    """Aff-Wild2's EXPR files: a header of class names, then one integer per frame of the video of the file's name."""
    if first_frame not in (0, 1):
        raise StorageError(f"first_frame is 0 or 1, found {first_frame}: 00000.jpg or 00001.jpg holds the first label")
    if root is None:
        raise StorageError("annotation files name no images; give the folder that holds <video>/<frame>.jpg as root")
    parts = []
    for path in paths:
        lines = files.read_bytes(path).decode("utf-8-sig").split("\n")
        header = [emotion(word) for word in lines[0].split(",")]
        known = [emotion(name) for name in labels.classes]
        if sorted(set(header) - set(known)):
            raise StorageError(
                f"{path}: its header names {lines[0].strip()[:120]!r}, the label map has {', '.join(labels.classes)}; "
                "choose a label map with these classes"
            )
        given = [line.strip() for line in lines[1:]]
        while given and not given[-1]:
            given.pop()
        try:
            numbers = np.array([int(token) for token in given], np.int64)
        except ValueError as error:
            raise StorageError(f"{path}: expected one integer per frame after the header ({error})") from None
        if numbers.size and (numbers.min() < -1 or numbers.max() >= len(header)):
            raise StorageError(
                f"{path}: labels {numbers.min()}..{numbers.max()}, its header names {len(header)} classes"
            )
        to_index = np.array([*(known.index(word) for word in header), -1])
        video = PurePosixPath(path).stem
        folder = files.join(root, video)
        parts.append(_video(video, folder, _numbered_images(folder), to_index[numbers], first_frame))
    return _with_kind(pa.concat_tables(parts), "image")


def _video(video: str, folder: str, images: dict[int, str], labels: np.ndarray, first_frame: int) -> pa.Table:
    """Rows of one video: every frame, whether its face was found or not."""
    numbers = np.arange(first_frame, first_frame + len(labels), dtype=np.int32)
    names = [images.get(int(n)) for n in numbers]
    return pa.table(
        {
            "video": [video] * len(numbers),
            "frame": numbers,
            "uri": [files.join(folder, name or f"{n:05d}.jpg") for n, name in zip(numbers, names, strict=True)],
            "frames": np.ones(len(numbers), np.int32),
            "label": labels.astype(np.int32),
            "present": [name is not None for name in names],
        },
        schema=FRAMES,
    )


def _numbered_images(folder: str) -> dict[int, str]:
    """Image files of a video by frame number: one listing, not one look per frame."""
    fs, place = files.filesystem(folder)
    try:
        entries = fs.get_file_info(pafs.FileSelector(place))
    except FileNotFoundError:
        raise StorageError(f"{folder}: no such folder of face images; check root, or leave this video out") from None
    names = [entry.base_name for entry in entries if entry.type == pafs.FileType.File]
    paths = [PurePosixPath(name) for name in names]
    return {int(p.stem): p.name for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.stem.isdecimal()}


def _with_kind(table: pa.Table, kind: str) -> pa.Table:
    metadata: dict[Any, Any] = {"sample": kind}
    return table.replace_schema_metadata(metadata)
