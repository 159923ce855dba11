"""Drawn faces of the eight frame classes, in the layouts of the published lists: long videos, clips and images.

Within a video the person stays and the expression changes; some frames are spoilt (noise, blur, a hand before the face)
without their label changing, some have no face and some no label, as in Aff-Wild2.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from tasks.face import Expression, Person, blend, draw, random_person

CLASSES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
_REST = Expression()
# the four negative ones resemble each other more than the rest: that is what the cascade is for
POSES = {
    "Neutral": _REST,
    "Anger": Expression(brow_slant=0.9, brow_height=-0.12, eye_open=0.35, mouth_open=0.12, mouth_curve=-0.5, teeth=1.0),
    "Disgust": Expression(
        brow_slant=0.6, brow_height=-0.1, eye_open=0.12, mouth_open=0.08, mouth_curve=-0.5, mouth_skew=0.6
    ),
    "Fear": Expression(
        brow_slant=-0.5, brow_height=0.15, eye_open=0.9, mouth_open=0.15, mouth_curve=-0.6, mouth_width=0.5
    ),
    "Happiness": Expression(
        brow_height=0.1, eye_open=0.45, mouth_curve=1.0, mouth_open=0.26, mouth_width=0.62, teeth=1.0
    ),
    "Sadness": Expression(brow_slant=-0.6, eye_open=0.3, mouth_curve=-0.8, mouth_width=0.4, mouth_open=0.05),
    "Surprise": Expression(brow_height=0.3, eye_open=1.0, mouth_open=0.75, mouth_width=0.34, brow_slant=-0.1),
    "Other": Expression(eye_open=0.5, mouth_open=0.3, mouth_width=0.2, mouth_skew=-0.7, tilt=-0.2, turn=0.12),
}


@dataclass(frozen=True, kw_only=True)
class FaceSettings:
    """What the drawn data set is like.

    Parameters
    ----------
    size
        Side of an image, pixels.
    noise
        Share of frames that are spoilt without a change of label.
    missing, unlabelled
        Shares of a video's frames without a face image, and with label -1.
    weakest
        Least strength of an expression: towards 0 it fades into the neutral face.
    """

    size: int = 64
    noise: float = 0.2
    missing: float = 0.03
    unlabelled: float = 0.05
    weakest: float = 0.35


class DrawnVideo(NamedTuple):
    """A video's face images (None where no face was found) and its labels, -1 where unlabelled."""

    faces: list[np.ndarray | None]
    labels: np.ndarray


def draw_face(
    rng: np.random.Generator, person: Person, name: str, strength: float, settings: FaceSettings
) -> np.ndarray:
    """One face image uint8 [S, S, 3] of class `name`."""
    pose = blend(_REST, POSES[name], strength)
    pose = replace(pose, turn=pose.turn + rng.normal(0, 0.03), tilt=pose.tilt + rng.normal(0, 0.04))
    image = draw(person, pose, rng.normal(0, 0.02, 3))
    grain = rng.normal(0, 4, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def spoil(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image with one of three accidents that leave its label true: noise, blur, something before the face."""
    side = image.shape[0]
    kind = rng.integers(3)
    if kind == 0:
        return np.clip(image + rng.normal(0, 60, image.shape), 0, 255).astype(np.uint8)
    if kind == 1:
        return cv2.GaussianBlur(image, (0, 0), side / 14)
    spoilt = image.copy()
    y, x = (int(v) for v in rng.integers(0, side // 2, 2))
    spoilt[y : y + side // 2, x : x + side // 2] = rng.integers(40, 200, 3)
    return spoilt


def draw_video(seed: int, number: int, frames: int, settings: FaceSettings) -> DrawnVideo:
    """A video whose expression changes every 8 to 24 frames; equal arguments give equal pixels."""
    rng = np.random.default_rng([seed, 0, number])
    person = random_person(rng, settings.size, settings.size, "easy")
    labels = np.empty(frames, np.int64)
    faces: list[np.ndarray | None] = []
    at = 0
    while at < frames:
        length = min(int(rng.integers(8, 25)), frames - at)
        label = int(rng.integers(len(CLASSES)))
        peak = rng.uniform(settings.weakest, 1.0)
        labels[at : at + length] = label
        for place in np.linspace(0, np.pi, length):
            strength = peak * (0.7 + 0.3 * np.sin(place))
            face = draw_face(rng, person, CLASSES[label], strength, settings)
            faces.append(spoil(rng, face) if rng.random() < settings.noise else face)
        at += length
    for i in np.flatnonzero(rng.random(frames) < settings.missing):
        faces[i] = None
    labels[rng.random(frames) < settings.unlabelled] = -1
    return DrawnVideo(faces, labels)


def draw_clip(seed: int, number: int, frames: int, name: str, settings: FaceSettings) -> list[np.ndarray]:
    """A short clip of one expression that rises and falls."""
    rng = np.random.default_rng([seed, 1, number])
    person = random_person(rng, settings.size, settings.size, "easy")
    peak = rng.uniform(max(settings.weakest, 0.5), 1.0)
    rise = np.sin(np.linspace(0.3, np.pi - 0.3, frames))
    images = [draw_face(rng, person, name, peak * float(r), settings) for r in rise]
    return [spoil(rng, image) if rng.random() < settings.noise else image for image in images]


def draw_image(seed: int, number: int, name: str, settings: FaceSettings) -> np.ndarray:
    """One image of one expression of a person of its own."""
    rng = np.random.default_rng([seed, 2, number])
    person = random_person(rng, settings.size, settings.size, "easy")
    image = draw_face(rng, person, name, rng.uniform(settings.weakest, 1.0), settings)
    return spoil(rng, image) if rng.random() < settings.noise else image
