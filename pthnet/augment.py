"""Random changes to face images and clips, on uint8 frames: the recipes of EC-STFL and CFC-SP without torchvision.

AUGMENT["cfc-sp"](frames, np.random.default_rng(0))        # uint8 [T, H, W, 3] -> uint8 [T, S, S, 3]
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

# T frames, H W pixels, S output side; all frames of a clip are changed alike

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_IMAGENET_MEAN = (124, 116, 104)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a sample in training, in this order; a probability of 0 leaves a step out.

    Parameters
    ----------
    size
        Side of the square output, pixels.
    rotate, rotate_p
        Largest angle, degrees either way; probability.
    area, aspect, crop_tries
        Random resized crop: share of the image's area, width / height (drawn log-uniformly), attempts before the
        largest centred crop is taken. area (1, 1) keeps the whole image.
    flip_p, grey_p
        Probability of mirroring left and right; of dropping colour.
    jitter, jitter_p
        Brightness, contrast and saturation are scaled by 1 +- jitter and hue is turned by up to jitter / 4 of the
        colour circle either way (0.4, 0.4, 0.4, 0.1 at jitter 0.4), in random order; probability.
    blur_p, blur_sigma
        Gaussian blur; range of its sigma, pixels of the output.
    erase_p, erase_area
        One rectangle is set to ImageNet's mean colour (zero once normalised); range of its share of the area.
    """

    size: int
    rotate: float = 0.0
    rotate_p: float = 0.0
    area: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_tries: int = 10
    flip_p: float = 0.0
    grey_p: float = 0.0
    jitter: float = 0.0
    jitter_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    erase_p: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change one clip (or one image: T = 1); every frame gets the same draw.

        Parameters
        ----------
        frames
            uint8 [T, H, W, 3], RGB.
        rng
            The only source of chance.

        Returns
        -------
        uint8 [T, size, size, 3].
        """
        if self.rotate_p and rng.random() < self.rotate_p:
            frames = _rotate(frames, rng.uniform(-self.rotate, self.rotate))
        if self.area != (1.0, 1.0):
            y, x, h, w = self._crop(frames.shape[1], frames.shape[2], rng)
            frames = frames[:, y : y + h, x : x + w]
        out = resize(frames, self.size)
        if self.flip_p and rng.random() < self.flip_p:
            out = np.ascontiguousarray(out[:, :, ::-1])
        if self.jitter_p and rng.random() < self.jitter_p:
            out = _jitter(out, self.jitter, rng)
        if self.grey_p and rng.random() < self.grey_p:
            out = np.repeat((out @ _GREY)[..., None].round().astype(np.uint8), 3, axis=3)
        if self.blur_p and rng.random() < self.blur_p:
            sigma = rng.uniform(*self.blur_sigma)
            out = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in out])
        if self.erase_p and rng.random() < self.erase_p:
            out = self._erase(out, rng)
        return out

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height, width of a random crop."""
        for _ in range(self.crop_tries):
            area = height * width * rng.uniform(*self.area)
            ratio = np.exp(rng.uniform(*np.log(self.aspect)))
            w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        h = min(height, round(width / self.aspect[0]))
        w = min(width, round(height * self.aspect[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    def _erase(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        share, ratio = rng.uniform(*self.erase_area), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h = min(self.size, max(1, round(float(self.size * np.sqrt(share * ratio)))))
        w = min(self.size, max(1, round(float(self.size * np.sqrt(share / ratio)))))
        y, x = rng.integers(self.size - h + 1), rng.integers(self.size - w + 1)
        frames = frames.copy()
        frames[:, y : y + h, x : x + w] = _IMAGENET_MEAN
        return frames

    def at(self, size: int) -> "Augment":
        """The same recipe for another output side."""
        return replace(self, size=size)


# the published recipes; the whole clip is cropped and mirrored once
AUGMENT = {
    "ec-stfl-video": Augment(size=112, area=(0.08, 1.0), flip_p=0.5),
    "ec-stfl-image": Augment(size=224, area=(0.08, 1.0), flip_p=0.5),
    "cfc-sp": Augment(
        size=224,
        rotate=6.0,
        rotate_p=0.5,
        area=(0.8, 1.0),
        flip_p=0.5,
        grey_p=0.2,
        jitter=0.4,
        jitter_p=0.8,
        blur_p=0.5,
        erase_p=0.5,
    ),
}


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] -> uint8 [T, size, size, 3]; the aspect ratio is not kept.

    Shrinking averages over the pixels that fall together, as the antialiased resize of the published code does.
    """
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for source, target in zip(frames, out, strict=True):
        shrinks = source.shape[0] >= size and source.shape[1] >= size
        cv2.resize(source, (size, size), dst=target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return out


def _rotate(frames: np.ndarray, degrees: float) -> np.ndarray:
    height, width = frames.shape[1:3]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return np.stack([cv2.warpAffine(frame, turn, (width, height), flags=cv2.INTER_LINEAR) for frame in frames])


def _jitter(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, the same for all frames."""
    x: np.ndarray = frames.astype(np.float32)
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    hue = rng.uniform(-strength / 4, strength / 4)
    for step in rng.permutation(4):
        if step == 0:
            x = x * np.float32(brightness)
        elif step == 1:
            mean = (x @ _GREY).mean(axis=(1, 2), keepdims=True)[..., None]
            x = mean + (x - mean) * np.float32(contrast)
        elif step == 2:
            grey = (x @ _GREY)[..., None]
            x = grey + (x - grey) * np.float32(saturation)
        else:
            x = np.stack([_turn_hue(frame, hue) for frame in x])
        np.clip(x, 0, 255, out=x)
    return x.round().astype(np.uint8)


def _turn_hue(frame: np.ndarray, share: float) -> np.ndarray:
    """Turn the hue by `share` of the colour circle; float32 [H, W, 3] in 0..255."""
    hsv = cv2.cvtColor(frame / np.float32(255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * share) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
