"""A clip's video with its expression drawn in: the label of the moment, its probabilities, and where in time we are.

Same size and rate as the clip; H.264 in MP4, which every browser plays.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tasks.footage import Footage
from tasks.palette import colour_of
from tasks.track import Track

PANEL_SHARE = 0.38  # of the height that the probabilities may cover
MOST_ROWS = 8
SHADE = 0.45  # what is left of the picture's light behind text


def write_overlay(footage: Footage, track: Track, path: Path) -> int:
    """Draw into every frame and encode; returns the number of frames. Stopped half-way, no file is left.

    Raises
    ------
    ValueError
        For a clip without a frame.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            painter, stream = None, None
            for count, frame in enumerate(footage.frames, 1):
                if painter is None or stream is None:
                    painter = Painter(track, *frame.shape[:2])
                    stream = _stream(container, footage, *frame.shape[:2])
                picture = painter.paint(frame, count - 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(_even(picture), format="rgb24")))
            if stream is None:
                raise ValueError(f"{track.clip} has no frame")
            container.mux(stream.encode())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _stream(container: Any, footage: Footage, height: int, width: int) -> Any:
    stream = container.add_stream("libx264", rate=footage.rate)
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    stream.options = {"preset": "veryfast", "crf": "21", "threads": "1"}
    return stream


def _even(picture: np.ndarray) -> np.ndarray:
    """H.264's 4:2:0 needs even sides: an odd one grows by a repeated line."""
    height, width = picture.shape[:2]
    if not (height % 2 or width % 2):
        return picture
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class Painter:
    """Draws a track into frames of one size.

    Parameters
    ----------
    track : Track
    height, width : int
        Of the frames.
    """

    def __init__(self, track: Track, height: int, width: int) -> None:
        self.track, self.height, self.width = track, height, width
        self.text = int(np.clip(height * 0.042, 9, 30))  # pixels
        self.pad = max(2, self.text // 3)
        self.row = round(self.text * 1.35)
        rows = max(1, min(MOST_ROWS, len(track.classes), int(height * PANEL_SHARE) // self.row))
        # The classes that matter in this clip, in a fixed order so that bars do not jump.
        self.shown = np.sort(np.argsort(-track.fused.max(0), kind="stable")[:rows])
        names = [sprite(track.classes[index], self.text) for index in self.shown]
        self.names = [name[:, : int(width * 0.5)] for name in names]
        self.column = max(name.shape[1] for name in self.names)
        self.strip = self._strip()

    def paint(self, frame: np.ndarray, number: int) -> np.ndarray:
        """The frame with everything drawn in; the frame itself is left as it was."""
        picture = np.ascontiguousarray(frame).copy()
        shares = self.track.at(number)
        self._label(picture, shares)
        self._bars(picture, shares)
        self._time(picture, number)
        return picture

    def _label(self, picture: np.ndarray, shares: np.ndarray) -> None:
        index = int(shares.argmax())
        size = round(self.text * 1.35)
        text = sprite(f"{self.track.classes[index]}  {100 * shares[index]:.0f} %", size)
        high, wide = text.shape[0] + 2 * self.pad, text.shape[1] + 4 * self.pad
        picture[:high, :wide] = picture[:high, :wide] * SHADE
        picture[:high, : self.pad] = colour_of(index)
        _blend(picture, text, self.pad, 2 * self.pad)

    def _bars(self, picture: np.ndarray, shares: np.ndarray) -> None:
        high = len(self.shown) * self.row + 2 * self.pad
        top = self.height - high - len(self.strip) - 1
        room = max(10, min(self.width - self.column - 5 * self.pad, round(self.width * 0.3)))
        wide = self.column + room + 4 * self.pad
        if top < 0:
            return
        picture[top : top + high, :wide] = picture[top : top + high, :wide] * SHADE
        for line, (index, name) in enumerate(zip(self.shown, self.names, strict=True)):
            y = top + self.pad + line * self.row
            _blend(picture, name, y, self.pad)
            x = self.column + 2 * self.pad
            middle = y + (self.row - self.text) // 2
            filled = round(room * float(shares[index]))
            cv2.rectangle(picture, (x, middle), (x + room, middle + self.text - 2), (90, 90, 90), 1)
            if filled:
                cv2.rectangle(picture, (x, middle), (x + filled, middle + self.text - 2), colour_of(index), -1)

    def _strip(self) -> np.ndarray:
        """The whole clip as one line of colours, the label of every moment, [h, width, 3]."""
        frames = np.linspace(self.track.starts.min(), self.track.ends.max() - 1, self.width)
        line = np.array([colour_of(int(self.track.at(frame).argmax())) for frame in frames], np.uint8)
        return np.repeat(line[None], max(3, self.text // 3), axis=0)

    def _time(self, picture: np.ndarray, number: int) -> None:
        picture[self.height - len(self.strip) :] = self.strip
        first, last = int(self.track.starts.min()), int(self.track.ends.max()) - 1
        share = (number - first) / max(last - first, 1)
        x = int(np.clip(share, 0, 1) * (self.width - 1))
        cv2.line(picture, (x, self.height - 2 * len(self.strip)), (x, self.height - 1), (255, 255, 255), 2)


@lru_cache(maxsize=512)
def sprite(text: str, size: int) -> np.ndarray:
    """White text as opacity [h, w] in 0..1, in a font that has most alphabets (OpenCV's has ASCII only)."""
    from PIL import Image, ImageDraw

    font = _font(size)
    left, _, right, _ = font.getbbox(text)
    image = Image.new("L", (max(1, round(right - left) + 1), round(size * 1.3)))
    ImageDraw.Draw(image).text((-left, 0), text, fill=255, font=font)
    return np.asarray(image, np.float32) / 255


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"), size)


def _blend(picture: np.ndarray, text: np.ndarray, top: int, left: int) -> None:
    area = picture[top : top + text.shape[0], left : left + text.shape[1]]
    opacity = text[: area.shape[0], : area.shape[1], None]
    area[:] = area * (1 - opacity) + 255 * opacity
