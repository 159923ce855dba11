"""Predictions of the frame models as a table, and the challenge's submission files made of them.

    video, frame, uri, label, present, logit_<class>, ...

The label is the list's own (all classes), whatever classes the network tells apart. Rows without a face have nulls.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pthnet.errors import ModelError
from storage import files
from storage.errors import StorageError

_NAMES = {"video": ("video", "clip", "clip_id"), "frame": ("frame", "start", "window")}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A network's outputs over whole videos, rows sorted by video and position.

    Attributes
    ----------
    classes : tuple of str
    videos : str [N]
    frames : int64 [N]
        Frame number, or first frame of a window.
    labels : int64 [N]
        -1 where unknown.
    present : bool [N]
    logits : float64 [N, classes]
        Before softmax, or log probabilities, which smooth alike; NaN where nothing was seen.
    is_frames : bool
        Whether rows are frames rather than windows.
    """

    classes: tuple[str, ...]
    videos: np.ndarray
    frames: np.ndarray
    labels: np.ndarray
    present: np.ndarray
    logits: np.ndarray
    is_frames: bool = True


def prediction_table(samples: pa.Table, logits: np.ndarray, classes: Sequence[str]) -> pa.Table:
    """A prediction table of FRAMES rows and their logits [N, classes], NaN rows becoming nulls."""
    seen = ~np.isnan(logits).any(axis=1)
    columns = {name: samples[name] for name in ("video", "frame", "uri", "label", "present")}
    for index, name in enumerate(classes):
        columns[f"logit_{name}"] = pa.array(logits[:, index], pa.float32(), mask=~seen)
    return pa.table(columns)


def read_outputs(uri: str) -> Outputs:
    """Read a prediction table, of frames or of windows, Parquet or CSV.

    Columns: the video under `video`, `clip` or `clip_id`; the position under `frame`, `start` or `window` (first frame
    of a window, ascending in time); `logit_<class>`, or `p_<class>` whose logarithm serves as well; `label` if any.

    Raises
    ------
    StorageError
        No such file, or columns are missing; two rows of one position.
    """
    try:
        data = files.read_bytes(str(uri))
    except FileNotFoundError:
        raise StorageError(f"{uri}: no such prediction table") from None
    try:
        if str(uri).endswith(".csv"):
            import pyarrow.csv as pacsv

            table = pacsv.read_csv(io.BytesIO(data))
        else:
            table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri} is no Parquet or CSV table ({error})") from None
    names = {key: next((n for n in known if n in table.column_names), None) for key, known in _NAMES.items()}
    prefix = next((p for p in ("logit_", "p_") if any(n.startswith(p) for n in table.column_names)), None)
    if None in names.values() or prefix is None:
        raise StorageError(
            f"{uri} has the columns {', '.join(table.column_names)}; expected a video (video, clip, clip_id), a "
            "position (frame, start, window) and logit_<class> or p_<class>"
        )
    classes = tuple(n.removeprefix(prefix) for n in table.column_names if n.startswith(prefix))
    logits = np.stack([_floats(table[prefix + name]) for name in classes], axis=1)
    if prefix == "p_":
        with np.errstate(divide="ignore"):
            logits = np.log(np.maximum(logits, 1e-30))
    videos = np.asarray(table[names["video"]].cast(pa.string()).to_numpy(zero_copy_only=False), dtype=str)
    frames = np.asarray(table[names["frame"]].to_numpy(), np.int64)
    order = np.lexsort((frames, videos))
    videos, frames, logits = videos[order], frames[order], logits[order]
    twice = np.flatnonzero((videos[1:] == videos[:-1]) & (frames[1:] == frames[:-1]))
    if len(twice):
        raise StorageError(f"{uri}: two rows for {videos[twice[0]]} at {frames[twice[0]]}; give one row per position")
    labels = np.full(len(videos), -1, np.int64)
    if "label" in table.column_names:
        labels = np.asarray(table["label"].fill_null(-1).to_numpy(), np.int64)[order]
    return Outputs(
        classes=classes,
        videos=videos,
        frames=frames,
        labels=labels,
        present=~np.isnan(logits).any(axis=1),
        logits=logits,
        is_frames=names["frame"] == "frame",
    )


def same_rows(one: Outputs, other: Outputs) -> None:
    """Refuse two networks that did not see the same positions of the same videos."""
    if len(one.videos) == len(other.videos):
        unlike = np.flatnonzero((one.videos != other.videos) | (one.frames != other.frames))
        if not len(unlike):
            return
        where = f"the first: {one.videos[unlike[0]]} at {one.frames[unlike[0]]}"
    else:
        where = f"{len(one.videos)} rows and {len(other.videos)}"
    raise StorageError(f"the two tables do not cover the same positions ({where}); predict the same list with both")


def write_submission(
    folder: str, classes: Sequence[str], videos: np.ndarray, frames: np.ndarray, predicted: np.ndarray
) -> list[str]:
    """Write the challenge's two forms: a .txt per video, and one predictions.txt.

    `<folder>/videos/<video>.txt` has a header of class names and one class index per frame, `<folder>/predictions.txt`
    has the header image_location,<class names> and a line "<video>/<frame>.jpg,<class index>" per frame.

    Returns
    -------
    list of str
        What was written.
    """
    if predicted.min(initial=0) < 0 or predicted.max(initial=0) >= len(classes):
        raise ModelError(f"predictions lie in {predicted.min()}..{predicted.max()}, there are {len(classes)} classes")
    header = ",".join(classes)
    lines = [f"image_location,{header}"]
    written = []
    cuts = np.flatnonzero(np.r_[len(videos) > 0, videos[1:] != videos[:-1]])
    for start, stop in zip(cuts, [*cuts[1:], len(videos)], strict=True):
        video = str(videos[start])
        text = "\n".join([header, *map(str, predicted[start:stop].tolist())]) + "\n"
        written.append(files.join(folder, "videos", f"{video}.txt"))
        files.write_atomic(written[-1], text.encode())
        lines += [f"{video}/{f:05d}.jpg,{p}" for f, p in zip(frames[start:stop], predicted[start:stop], strict=True)]
    written.append(files.join(folder, "predictions.txt"))
    files.write_atomic(written[-1], ("\n".join(lines) + "\n").encode())
    return written


def write_table(uri: str, table: pa.Table) -> None:
    """Write Parquet, or CSV where the name says so."""
    sink = pa.BufferOutputStream()
    if uri.endswith(".csv"):
        import pyarrow.csv as pacsv

        pacsv.write_csv(table, sink)
    else:
        pq.write_table(table, sink)
    files.write_atomic(uri, sink.getvalue())


def upload(folder: Path, uri: str) -> None:
    """Copy the files of a local folder to a URI."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files.write_atomic(files.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
