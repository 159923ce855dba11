"""A drawn face with brows, eyes, mouth and head that move: the frames of one synthetic clip of a class.

Two pairs of classes differ in nothing but the direction of time: Sad is Happy played backwards, and Fear is Surprise
played backwards.
"""

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
PLAYED_BACKWARDS = {"Sad": "Happy", "Fear": "Surprise"}
Difficulty = Literal["easy", "hard"]

_CIRCLE = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 28, endpoint=False)), np.sin(t)], axis=1)
_SUBPIXEL_BITS = 4


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What the face does in one frame; lengths in half-widths of the head, angles in radians."""

    brow_height: float = 0.0
    brow_slant: float = 0.0  # positive: the inner ends sink (anger), negative: they rise (grief)
    eye_open: float = 0.5
    mouth_curve: float = 0.0  # positive: the corners rise
    mouth_open: float = 0.06
    mouth_width: float = 0.42
    mouth_skew: float = 0.0
    teeth: float = 0.0
    turn: float = 0.0  # the features slide sideways over the head
    tilt: float = 0.0


_REST = Expression()
_GRIEF = Expression(brow_slant=-0.6, brow_height=0.02, eye_open=0.3, mouth_curve=-0.9, mouth_width=0.4, mouth_open=0.05)
_SMILE = Expression(
    brow_height=0.1, eye_open=0.45, mouth_curve=1.0, mouth_open=0.26, mouth_width=0.62, teeth=1.0, brow_slant=0.0
)
_GASP = Expression(brow_height=0.3, eye_open=1.0, mouth_open=0.75, mouth_width=0.34, brow_slant=-0.1)
_RAGE = Expression(brow_slant=0.9, brow_height=-0.12, eye_open=0.35, mouth_open=0.3, mouth_width=0.55, teeth=1.0)
_SNEER = Expression(brow_slant=0.3, brow_height=-0.1, eye_open=0.12, mouth_skew=0.8, mouth_open=0.08, tilt=0.35)


@dataclass(frozen=True, kw_only=True)
class Person:
    """What stays the same through a clip: who is seen, where and in what light."""

    skin: np.ndarray
    hair: np.ndarray
    backdrop: np.ndarray  # uint8 [H, W, 3]
    centre: tuple[float, float]
    half_width: float
    half_height: float


def clip_frames(
    rng: np.random.Generator, name: str, *, num_frames: int, width: int, height: int, difficulty: Difficulty = "easy"
) -> np.ndarray:
    """Draw the frames of one clip of class `name`.

    Parameters
    ----------
    rng
        The only source of chance: equal generators give equal frames.
    name
        One of `CLASSES`.
    num_frames, width, height
        Length in frames and size in pixels.
    difficulty
        "easy": the face fills the frame and jitters a little. "hard": free position, size and background.

    Returns
    -------
    uint8 [num_frames, height, width, 3], RGB.
    """
    forward = PLAYED_BACKWARDS.get(name, name)
    person = random_person(rng, width, height, difficulty)
    script = _script(rng, forward, num_frames)
    sway = _sway(rng, num_frames, 0.03 if difficulty == "easy" else 0.08)
    grain = rng.normal(0.0, rng.uniform(1.0, 5.0), (height + 32, width + 32, 3)).astype(np.int16)
    corners = rng.integers(0, 32, (num_frames, 2))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t, expression in enumerate(script):
        drawn = draw(person, expression, sway[t])
        y, x = corners[t]
        np.clip(drawn + grain[y : y + height, x : x + width], 0, 255, out=frames[t], casting="unsafe")
    return frames[::-1].copy() if name in PLAYED_BACKWARDS else frames


def random_person(rng: np.random.Generator, width: int, height: int, difficulty: Difficulty) -> Person:
    """Someone new, somewhere in a frame of `width` x `height` pixels."""
    light = rng.uniform(0.85, 1.1)
    skin = np.array([224, 180, 150]) * light * rng.uniform(0.92, 1.04, 3)
    hair = np.array([70, 50, 40]) * rng.uniform(0.6, 1.5)
    if difficulty == "easy":
        backdrop: np.ndarray = np.broadcast_to(rng.uniform(80, 130) + rng.uniform(-10, 10, 3), (height, width, 3))
        scale, free_x, free_y = rng.uniform(0.9, 1.0), 0.02, 0.02
    else:
        coarse = rng.uniform(0, 255, (5, 5, 3)).astype(np.float32)
        backdrop = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        scale = rng.uniform(0.35, 0.9)
        free_x = free_y = 0.5 * (1 - scale)
    return Person(
        skin=np.clip(skin, 0, 255),
        hair=np.clip(hair, 0, 255),
        backdrop=np.clip(backdrop, 0, 255).astype(np.uint8),
        centre=(
            width * (0.5 + rng.uniform(-free_x, free_x)),
            height * (0.5 + rng.uniform(-free_y, free_y)),
        ),
        half_width=0.5 * width * scale,
        half_height=0.5 * height * scale,
    )


def _script(rng: np.random.Generator, name: str, num_frames: int) -> list[Expression]:
    """The expression of every frame. Happy and Surprise go one way; the other classes look alike in both directions."""
    time = np.linspace(0.0, 1.0, num_frames)
    strength = rng.uniform(0.85, 1.0)
    rise = 1 / (1 + np.exp(-(time - rng.uniform(0.42, 0.58)) * rng.uniform(10, 18)))
    held = 0.75 + 0.25 * np.sin(np.pi * time)
    swing = np.sin(2 * np.pi * (time * rng.uniform(1.0, 2.5) + rng.uniform()))
    blink = np.exp(-(((time - rng.uniform(0.1, 0.9)) * num_frames / 2.0) ** 2))
    if name == "Happy":
        path = [blend(_GRIEF, _SMILE, strength * r) for r in rise]
    elif name == "Surprise":
        path = [blend(_REST, _GASP, strength * r) for r in rise]
    elif name == "Angry":
        path = [replace(blend(_REST, _RAGE, strength * h), turn=0.14 * s) for h, s in zip(held, swing, strict=True)]
    elif name == "Disgust":
        path = [blend(_REST, _SNEER, strength * h) for h in held]
    elif name == "Neutral":
        path = [replace(_REST, turn=0.04 * s) for s in swing]
    else:
        raise ValueError(f"no drawing for class {name!r}; known: {', '.join(CLASSES)}")
    return [replace(e, eye_open=e.eye_open * (1 - 0.8 * b)) for e, b in zip(path, blink, strict=True)]


def blend(a: Expression, b: Expression, share: float) -> Expression:
    """The expression at `share` of the way from a (0) to b (1)."""
    return Expression(**{k: (1 - share) * getattr(a, k) + share * getattr(b, k) for k in vars(a)})


def _sway(rng: np.random.Generator, num_frames: int, size: float) -> np.ndarray:
    """Slow movement of the whole head: [num_frames, 3] of x, y (half-widths) and tilt (radians)."""
    time = np.linspace(0.0, 1.0, num_frames)[:, None]
    return size * np.sin(2 * np.pi * (time * rng.uniform(0.3, 1.5, 3) + rng.uniform(0, 1, 3)))


def draw(person: Person, e: Expression, sway: np.ndarray) -> np.ndarray:
    """One frame in face coordinates: x right, y down, the head spans -1..1 in both."""
    image = person.backdrop.copy()
    tilt = e.tilt + sway[2]
    turning = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    scale = np.array([person.half_width, person.half_height])
    origin = np.array(person.centre) + scale * sway[:2]
    dark, white, red = (25, 18, 18), (245, 245, 240), (150, 45, 50)
    skin, hair = tuple(person.skin.tolist()), tuple(person.hair.tolist())

    def fill(points: np.ndarray, colour: tuple[float, ...]) -> None:
        pixels = (points @ turning) * scale + origin
        fixed = np.round(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(image, [fixed], colour, cv2.LINE_AA, _SUBPIXEL_BITS)

    fill(_CIRCLE * (0.98, 1.0) + (0, -0.06), hair)
    fill(_CIRCLE * (0.88, 0.9) + (0, 0.1), skin)
    for side in (-1.0, 1.0):
        eye = np.array([side * 0.4 + e.turn, -0.12])
        opening = 0.02 + 0.2 * e.eye_open
        fill(_CIRCLE * (0.23, opening) + eye, white)
        fill(_CIRCLE * (0.11, min(0.11, opening)) + eye + (0.3 * e.turn, 0), dark)
        across = np.linspace(-0.28, 0.28, 6)
        lift = -0.42 - e.brow_height - side * across * e.brow_slant - 0.05 * np.cos(across * 5)
        brow = np.stack([across + eye[0], lift], axis=1)
        thick = np.array([0, 0.06])
        fill(np.concatenate([brow - thick, brow[::-1] + thick]), dark)
    nose = np.array([[0, -0.05], [0.12, 0.25], [-0.12, 0.25]]) + np.array([1.3 * e.turn, 0])
    fill(nose, tuple(0.8 * c for c in skin))
    _mouth(fill, e, white, red, dark)
    return image


def _mouth(fill, e: Expression, white: tuple, red: tuple, dark: tuple) -> None:  # type: ignore[no-untyped-def]
    across = np.linspace(-1.0, 1.0, 11)
    corners = 0.28 * e.mouth_curve * (0.5 - across**2) + 0.35 * e.mouth_skew * across
    middle = np.stack([across * e.mouth_width + e.turn, 0.55 + corners], axis=1)
    bulge = np.stack([np.zeros(11), np.sqrt(1 - across**2 * 0.98)], axis=1)

    def lips(opening: float) -> np.ndarray:
        return np.concatenate([middle - bulge * 0.5 * opening, (middle + bulge * 0.5 * opening)[::-1]])

    fill(lips(e.mouth_open + 0.1), red)
    fill(lips(e.mouth_open), dark)
    if e.teeth > 0.3:
        fill(lips(0.7 * e.mouth_open * e.teeth), white)
