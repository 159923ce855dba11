"""Reading frames: decord first (fast, rotates phone videos itself), PyAV where decord refuses, OpenCV for images.

Runs inside the decoding child only (tasks.decode_worker).
"""

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tasks.decode_worker import CHUNK, FrameSink, Refused, too_long

# decord retries a failing read 10,240 times by default, minutes on a damaged file.
os.environ.setdefault("DECORD_EOF_RETRY_MAX", "128")
# Tags in no known encoding must not keep a video from being read; from version 19 on PyAV needs no telling.
_TOLERANT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class DecordGaveUp(Exception):
    """decord cannot read this video; another decoder may."""


def read_with_decord(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Decode with decord; every failure of its own is DecordGaveUp."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(request["path"], ctx=decord.cpu(0), num_threads=1)
        total = len(reader)
    except (decord.DECORDError, RuntimeError) as error:
        raise DecordGaveUp(_short(error)) from None
    if request["num_frames"] not in (None, total):
        raise DecordGaveUp(f"it counts {total} frames")  # edit lists: PyAV counts as the plan did
    first, last = _range(request, total)
    for start in range(first, last, CHUNK):
        try:
            frames = reader.get_batch(range(start, min(start + CHUNK, last))).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise DecordGaveUp(_short(error)) from None
        for frame in frames:
            sink.put(frame)
        del frames
    return {"num_frames": total, "fps": float(reader.get_avg_fps()), "decoder": "decord"}


def _range(request: dict[str, Any], total: int) -> tuple[int, int]:
    """The asked-for frames of a video that has `total`."""
    planned, first, last = request["num_frames"], request["first"], request["last"]
    if planned is not None and total != planned:
        raise Refused(
            "frame_count_mismatch", f"planned with {planned} frames, found {total}; run again to plan it anew"
        )
    if last is None:
        if total - first > request["max_frames"]:
            raise too_long(str(total), request["max_frames"])
        return first, total
    if last > total:
        raise Refused("frame_count_mismatch", f"frames {first} to {last - 1} asked for, found {total}; run again")
    return first, last


def read_with_av(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Decode with PyAV (ffmpeg), turning the picture as its display matrix says."""
    try:
        with opened(request["path"]) as container:
            stream = picture_stream(container)
            if stream is None:
                raise Refused("no_video_stream", "it has no video stream")
            stream.thread_type, stream.thread_count = "NONE", 1
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            if request["first"] or request["last"] is not None:
                count = _read_part(request, container, stream, sink)
            else:
                count = _read_whole(container, stream, sink)
    except av.error.FFmpegError as error:
        kind = "out_of_memory" if "Cannot allocate memory" in str(error) else "decode_error"
        raise Refused(kind, _short(error)) from None
    return {"num_frames": count, "fps": fps, "decoder": "pyav"}


def picture_stream(container: Any) -> Any | None:
    """The first moving-picture stream; a cover image does not count."""
    for stream in container.streams.video:
        if not int(stream.disposition) & int(av.stream.Disposition.attached_pic):
            return stream
    return None


def _read_whole(container: Any, stream: Any, sink: FrameSink) -> int:
    end = None
    for frame in container.decode(stream):
        sink.put(upright(frame))
        if frame.pts is not None:
            end = max(end or 0, frame.pts + (frame.duration or 0))
    # A file cut short decodes without complaint up to the cut. Where its index promised more frames and time, say so.
    promised = stream.frames
    if promised > sink.count and stream.duration and end is not None:
        missing = ((stream.start_time or 0) + stream.duration - end) * stream.time_base
        if missing > 1.5 / (stream.average_rate or 25):
            raise Refused(
                "frame_count_mismatch", f"its index promises {promised} frames, {sink.count} can be decoded: cut short"
            )
    return sink.count


def _read_part(request: dict[str, Any], container: Any, stream: Any, sink: FrameSink) -> int:
    """Frames [first, last) by number: times of all frames from the packets, then a seek, then decoding."""
    times = frame_times(container, stream)
    first, last = _range(request, len(times))
    in_order = all(time is not None for time in times)
    if in_order:
        container.seek(times[first], stream=stream, backward=True)
    else:
        container.seek(0)
    number = -1
    for frame in container.decode(stream):
        number = int(bisect_left(times, frame.pts)) if in_order else number + 1
        if first <= number < last:
            if number != first + sink.count:
                raise Refused("decode_error", f"frame {first + sink.count} cannot be decoded")
            sink.put(upright(frame))
        if number >= last - 1:
            break
    if sink.count != last - first:
        raise Refused(
            "frame_count_mismatch", f"frames {first} to {last - 1} asked for, {sink.count} decoded; run again"
        )
    return len(times)


def frame_times(container: Any, stream: Any) -> list[int | None]:
    """Presentation times of all frames in stream ticks, ascending, from packet headers alone; None if it has none."""
    times = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    return times if None in times else sorted(times)


def look(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Read the header of a video; with request["exact"] also count its frames from the packets."""
    with opened(request["path"]) as container:
        stream = picture_stream(container)
        if stream is None:
            raise Refused("no_video_stream", "it has no video stream")
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        count, exact = stream.frames, False
        if not count and container.duration:
            count = round(container.duration / 1e6 * rate)
        if request["exact"] or not count:
            count, exact = len(frame_times(container, stream)), True
        return {"num_frames": count, "fps": rate, "width": stream.width, "height": stream.height, "exact": exact}


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """A PyAV container over a local file or an S3 object."""
    if "://" not in path:
        with av.open(path, **_TOLERANT) as container:
            yield container
        return
    from storage.files import filesystem  # pyarrow, only where there is S3

    fs, key = filesystem(path)
    with fs.open_input_file(key) as file, av.open(file, **_TOLERANT) as container:
        yield container


def upright(frame: Any) -> np.ndarray:
    """The picture as it is meant to be seen, turned as its display matrix says."""
    image = frame.to_ndarray(format="rgb24")
    return np.rot90(image, round(frame.rotation / 90)) if frame.rotation % 360 else image


def read_images(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Read a folder of frames, or one image as a clip of one frame."""
    path = Path(request["path"])
    if request["kind"] == "image":
        files, total = [path], 1
    else:
        files, total = [path / name for name in request["names"]], request["total"]
    if not files:
        raise Refused("empty", "the folder holds no image")
    _range(request, total)
    for file in files:
        data = np.fromfile(file, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
        if image is None:
            raise Refused("decode_error", f"{file.name} is not a readable image")
        sink.put(image)
    return {"num_frames": total, "fps": 0.0, "decoder": "opencv"}


def _short(error: Exception) -> str:
    """The words of a decoder's message that say something: no source paths, no stack of the native library."""
    lines = [
        line for line in str(error).splitlines() if line.strip() and "Stack trace" not in line and "[bt]" not in line
    ]
    text = " ".join(lines[:2])
    return text.rpartition("Check failed: ")[2][:200] or type(error).__name__
