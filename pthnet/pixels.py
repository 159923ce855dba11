"""From uint8 frames to the numbers the backbone sees: float / 255, then bilinear, aspect ratio not kept, no antialias.

Where that happens depends on the precision the features are wanted in (see `shipped_size`). `to_pixels` is the rule.
"""

import numpy as np
import torch
import torch.nn.functional as F

from pthnet.errors import ModelError

NORMALIZATIONS = ("none", "imagenet")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_pixels(frames: np.ndarray | torch.Tensor, size: int, normalize: str = "none") -> torch.Tensor:
    """The pixel rule, exact: what every faster form here is measured against.

    Parameters
    ----------
    frames : uint8 [T, H, W, 3]
        RGB.
    size : int
        Side S of the square the backbone takes; the aspect ratio is not kept.
    normalize : {"none", "imagenet"}
        "none" is what the published features were made with.

    Returns
    -------
    float32 [3, T, S, S]

    Raises
    ------
    ModelError
        For frames of another type or shape, or an unknown normalisation.
    """
    pixels = resize_frames(frames, size)  # [T, 3, S, S]
    return normalized(pixels.transpose(0, 1), normalize, channel_dim=0).contiguous()


def resize_frames(frames: np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
    """Frames as float in [0, 1] at the backbone's size, on the device they are on.

    Parameters
    ----------
    frames : uint8 [N, H, W, 3]
    size : int

    Returns
    -------
    float32 [N, 3, S, S]
    """
    frames = torch.as_tensor(frames)
    _check_frames(frames)
    pixels = frames.permute(0, 3, 1, 2).float().div_(255)
    if pixels.shape[-2:] == (size, size):
        return pixels.contiguous()
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=False)


def windows_to_pixels(
    frames: torch.Tensor,
    index: torch.Tensor,
    normalize: str = "none",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Gather windows out of shared frames; a frame that lies in four windows was sent to the device once.

    Parameters
    ----------
    frames : uint8 [N, S, S, 3], or float [N, 3, S, S] from `resize_frames`
        Already at the backbone's size.
    index : int64 [B, 16]
        Frames of each window, as `pthnet.windows.frame_indices` gives them.
    normalize : {"none", "imagenet"}
    dtype : torch.dtype
        Of the result. In bfloat16 a pixel is rounded to 8 significant bits, once, after the division.

    Returns
    -------
    [B, 3, 16, S, S]
        A strided view: the patch embedding copies it into patches anyway.
    """
    if frames.dtype == torch.uint8:
        _check_frames(frames)
        # 0..255 are exact in bfloat16 too, so that dividing there rounds once.
        pixels = frames[index].to(dtype).div_(255).permute(0, 4, 1, 2, 3)
    else:
        pixels = frames[index].to(dtype).permute(0, 2, 1, 3, 4)
    return normalized(pixels, normalize, channel_dim=1)


def normalized(pixels: torch.Tensor, normalize: str, channel_dim: int) -> torch.Tensor:
    """Subtract ImageNet's mean and divide by its deviation when asked; "none" returns the pixels as they are."""
    if normalize not in NORMALIZATIONS:
        raise ModelError(f"normalize must be none or imagenet; found {normalize!r}")
    if normalize == "none":
        return pixels
    shape = [1] * pixels.dim()
    shape[channel_dim] = 3
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(shape)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(shape)
    return ((pixels.float() - mean) / std).to(pixels.dtype)


def shipped_size(precision: str, image_size: int) -> tuple[int, int] | None:
    """At what size the decode stage should hand frames over.

    Parameters
    ----------
    precision : {"fp32", "bf16"}
    image_size : int
        Side of the backbone's input.

    Returns
    -------
    (height, width) or None
        "bf16": the backbone's size. Frames are resized to uint8 where they are decoded, which rounds a pixel to a whole
        level (see `resize_uint8`), no more than bfloat16 itself does, and a 1080p frame travels as 150 kB, not 6 MB.
        "fp32": None, the native size, and the device applies the exact rule; it costs bandwidth and memory and is meant
        for parity checks.
    """
    if precision not in ("fp32", "bf16"):
        raise ModelError(f"precision must be fp32 or bf16; found {precision!r}")
    return (image_size, image_size) if precision == "bf16" else None


def resize_uint8(frames: np.ndarray, size: int) -> np.ndarray:
    """The pixel rule on the CPU, rounded to whole grey levels.

    OpenCV's bilinear form has the same sampling points (half-pixel centres, no antialias) and fixed-point weights.
    Measured against the float rule on sizes from 40 x 48 to 3840 x 2160, in white noise and smooth images, up and down:
    at most 0.84 of a level away (ideal rounding: 0.5), 0.27 on average (ideal: 0.25).

    Parameters
    ----------
    frames : uint8 [T, H, W, 3]
    size : int

    Returns
    -------
    uint8 [T, S, S, 3]
        The frames themselves when they have that size already.
    """
    import cv2  # only decoders need it

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ModelError(f"frames must be uint8 [T, H, W, 3]; found {frames.dtype} {list(frames.shape)}")
    if frames.shape[1:3] == (size, size):
        return frames
    resized = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, out in zip(frames, resized, strict=True):
        cv2.resize(frame, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
    return resized


def _check_frames(frames: torch.Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[3] != 3:
        raise ModelError(f"frames must be uint8 [T, H, W, 3]; found {frames.dtype} {list(frames.shape)}")
