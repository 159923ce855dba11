"""From two face images to what HTNet sees: optical flow, optical strain, and the four face parts.

An image here is uint8 [S, S, 3] in the network's channel order (strain, v, u); written as a PNG by OpenCV, which
calls its three channels blue, green and red, it shows u as red, v as green and strain as blue.
"""

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pthnet.errors import ModelError

SIZE = 28  # pixels, side of a published flow image
PART = 14  # pixels, side of one of the four parts
METHODS = ("tvl1", "farneback")
CHANNELS = ("strain", "v", "u")
# the published stand-in for a face whose landmarks were not found: eyes, nose, mouth corners; (x, y) in the 28 x 28
# face
FALLBACK_LANDMARKS = np.array([(9.53, 11.06), (21.40, 10.92), (15.38, 17.38), (10.26, 22.12), (20.58, 22.26)])

Method = Literal["tvl1", "farneback"]
Axes = Literal["published", "corrected"]


def optical_flow(onset: NDArray[np.uint8], apex: NDArray[np.uint8], method: Method = "tvl1") -> NDArray[np.float32]:
    """Dense motion from onset to apex.

    Parameters
    ----------
    onset, apex
        Grey images uint8 [H, W] of one size.
    method
        "tvl1" (Zach et al. 2007, the slower and sharper) or "farneback" (2003).

    Returns
    -------
    float32 [H, W, 2]
        u (to the right) and v (downwards), pixels.

    Raises
    ------
    ModelError
        When the sizes differ or the method is unknown.
    """
    if onset.ndim != 2 or onset.shape != apex.shape:
        raise ModelError(
            f"onset and apex must be grey images of one size, found {onset.shape} and {apex.shape}; crop both alike"
        )
    if method == "farneback":
        start = np.zeros((*onset.shape, 2), np.float32)
        return np.asarray(cv2.calcOpticalFlowFarneback(onset, apex, start, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)
    if method == "tvl1":
        solver = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]  # absent from OpenCV's stubs
        return solver.calc(onset, apex, None)
    raise ModelError(f"unknown flow method {method!r}; choose one of {', '.join(METHODS)}")


def optical_strain(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much the skin is stretched or sheared: the norm of the symmetric part of the flow's gradient.

    `sqrt(u_x^2 + v_y^2 + (u_y + v_x)^2 / 2)`, [H, W, 2] -> [H, W]; zero where the whole face moves alike.
    """
    u_y, u_x = np.gradient(flow[..., 0])
    v_y, v_x = np.gradient(flow[..., 1])
    return np.sqrt(u_x**2 + v_y**2 + 0.5 * (u_y + v_x) ** 2).astype(np.float32)


def flow_image(
    onset: NDArray[np.uint8], apex: NDArray[np.uint8], method: Method = "tvl1", size: int = SIZE
) -> NDArray[np.uint8]:
    """Flow and strain of a pair of faces as the network's image uint8 [size, size, 3]: strain, v, u.

    Each channel is computed at the faces' own resolution, averaged down to `size` and min-max scaled to 0-255 by
    itself; a channel without any variation becomes 0.
    """
    flow = optical_flow(onset, apex, method)
    channels = (optical_strain(flow), flow[..., 1], flow[..., 0])
    return np.stack([_to_bytes(cv2.resize(c, (size, size), interpolation=cv2.INTER_AREA)) for c in channels], axis=-1)


def _to_bytes(channel: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(channel.min()), float(channel.max())
    if high <= low:
        return np.zeros(channel.shape, np.uint8)
    return np.rint((channel - low) * (255.0 / (high - low))).astype(np.uint8)


def part_corners(landmarks: NDArray[np.floating] = FALLBACK_LANDMARKS, axes: Axes = "published") -> NDArray[np.int64]:
    """Top left (row, column) of the four parts in the 28 x 28 image, [4, 2]: the eyes, then the mouth corners.

    Landmarks (x, y) [5, 2] are clamped to 7..21 and truncated. "published" takes x for the row and y for the column,
    as the released weights expect; "corrected" takes y for the row.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ModelError(f"expected five landmarks (x, y) in the 28 x 28 face, found {points.shape}: {points.tolist()}")
    if axes not in ("published", "corrected"):
        raise ModelError(f"axes is {axes!r}; choose published (x is the row) or corrected (y is the row)")
    half = PART // 2
    centres = np.clip(points[[0, 1, 3, 4]], half, SIZE - half).astype(np.int64)
    return (centres if axes == "published" else centres[:, ::-1]) - half


def four_parts(
    image: NDArray[np.uint8], landmarks: NDArray[np.floating] = FALLBACK_LANDMARKS, axes: Axes = "published"
) -> NDArray[np.uint8]:
    """The eyes above the mouth corners: four 14 x 14 crops of a 28 x 28 flow image, tiled to uint8 [28, 28, 3]."""
    if image.shape != (SIZE, SIZE, 3):
        raise ModelError(f"expected a flow image [{SIZE}, {SIZE}, 3], found {list(image.shape)}; resize it")
    eyes_and_mouth = [image[r : r + PART, c : c + PART] for r, c in part_corners(landmarks, axes)]
    return np.vstack([np.hstack(eyes_and_mouth[:2]), np.hstack(eyes_and_mouth[2:])])
