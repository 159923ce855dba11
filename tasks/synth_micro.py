"""A composite micro-expression set of drawn faces: three data sets, 68 subjects, 442 samples, motion where it belongs.

Stands in for data that may not be distributed: the counts by data set and class are the benchmark's, the faces are
not people.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pthnet.flow import FALLBACK_LANDMARKS, SIZE
from pthnet.micro_expressions import SAMPLES, SUBJECTS
from tasks.micro_list import MicroSample

FACE = 112  # pixels, side of a rendered face
_CSV_NAME = {"CASME II": "casme2", "SMIC": "smic", "SAMM": "samm"}
_SUBJECT = {"CASME II": "sub{:02d}", "SMIC": "s{:02d}", "SAMM": "{:03d}"}
_SCALE = FACE / SIZE

# where muscles pull, in the 28 x 28 face, and which way (u right, v down): mirrored to the right half of the face
_BROW, _CORNER, _CHEEK, _LIP = (9.0, 8.0), (10.3, 22.2), (8.5, 17.0), (15.4, 24.0)
_ACTIONS: dict[int, tuple[tuple[tuple[float, float], tuple[float, float]], ...]] = {
    0: ((_BROW, (0.6, 1.0)), (_CORNER, (-0.2, 0.9))),  # negative: brows down and together, corners down
    1: ((_CORNER, (-0.8, -0.9)), (_CHEEK, (0.0, -0.7))),  # positive: corners out and up, cheeks up
    2: ((_BROW, (0.0, -1.2)), (_LIP, (0.0, 0.9))),  # surprise: brows up, lower lip down
}


@dataclass(frozen=True)
class MicroFaces:
    """One rendered sample: grey faces uint8 [112, 112] and five landmarks (x, y) of the apex in 28 x 28 pixels."""

    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


def plan_samples(seed: int = 0, subjects: int = 0) -> list[MicroSample]:
    """The samples in the order of the combined CSV; `subjects` > 0 keeps only so many of every data set."""
    samples = []
    for number, (title, people) in enumerate(SUBJECTS.items()):
        draw = np.random.default_rng([seed, number])
        labels = draw.permutation(np.repeat(range(3), SAMPLES[title]))
        share = draw.dirichlet(np.full(people, 2.0))  # some show much, some little; everybody something
        owners = np.concatenate([np.arange(people), draw.choice(people, len(labels) - people, p=share)])
        for person in range(min(people, subjects) if subjects else people):
            sub = _SUBJECT[title].format(person + 1)
            for index, label in enumerate(labels[owners == person]):
                onset = int(draw.integers(1, 60))
                apex = onset + int(draw.integers(6, 20))
                file = f"EP{index + 1:02d}_{person + 1:02d}"
                samples.append(MicroSample(_CSV_NAME[title], sub, file, int(label), str(onset), str(apex)))
    return samples


def render_faces(sample: MicroSample, seed: int = 0) -> MicroFaces:
    """Onset and apex of a sample; the same seed and sample give the same bytes."""
    person = np.random.default_rng([seed, 1, *sample.subject.encode()])
    moment = np.random.default_rng([seed, 2, *sample.subject.encode(), *sample.file.encode()])
    shape = FALLBACK_LANDMARKS + person.normal(0, 0.35, (5, 2))
    face = _draw_face(person, shape)
    flow = _muscles(sample.label, moment, (shape - FALLBACK_LANDMARKS).mean(axis=0))
    flow += moment.uniform(-0.4, 0.4, 2).astype(np.float32)  # the head is never quite still
    rows, columns = np.indices(face.shape, dtype=np.float32)
    moved = cv2.remap(
        face, columns - flow[..., 0], rows - flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    at = np.clip(np.rint(shape * _SCALE).astype(int), 0, FACE - 1)
    landmarks = shape + flow[at[:, 1], at[:, 0]] / _SCALE
    return MicroFaces(_expose(face, moment), _expose(moved, moment), landmarks)


def _expose(face: NDArray[Any], draw: np.random.Generator) -> NDArray[np.uint8]:
    noisy = face * draw.uniform(0.98, 1.02) + draw.normal(0, 1.5, face.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _muscles(label: int, draw: np.random.Generator, offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """Displacement [112, 112, 2] in pixels: one bump for every pull, a little different on the two sides."""
    rows, columns = np.indices((FACE, FACE), dtype=np.float32)
    flow = np.zeros((FACE, FACE, 2), np.float32)
    strength = draw.uniform(0.9, 2.0)  # micro: one or two pixels of a hundred
    shown = draw.random(2) < 0.85
    if not shown.any():
        shown[int(draw.integers(2))] = True
    for (centre, pull), visible in zip(_ACTIONS[label], shown, strict=True):
        for side in (1, -1):
            if not visible:
                continue
            at = np.array(centre) + offset + draw.normal(0, 0.5, 2)
            x = at[0] if side == 1 else 2 * FALLBACK_LANDMARKS[2, 0] + offset[0] - at[0]
            distance = (columns - x * _SCALE) ** 2 + (rows - at[1] * _SCALE) ** 2
            bump = np.exp(-distance / (2 * (2.6 * _SCALE) ** 2)) * strength * draw.uniform(0.6, 1.2)
            flow += bump[..., None] * np.array([side * pull[0], pull[1]], np.float32)
    return flow


def _draw_face(draw: np.random.Generator, shape: NDArray[np.float64]) -> NDArray[np.float32]:
    """A grey face with skin texture for the flow to hold on to."""
    texture = sum(
        cv2.GaussianBlur(draw.normal(0, 1, (FACE, FACE)).astype(np.float32), (0, 0), sigma) * sigma * weight
        for sigma, weight in ((1.2, 14.0), (4.0, 16.0))
    )
    face = np.full((FACE, FACE), draw.uniform(120, 180), np.float32) + np.asarray(texture, np.float32)
    points = [(int(x), int(y)) for x, y in np.rint(shape * _SCALE)]
    dark = float(draw.uniform(30, 70))
    for x, y in points[:2]:
        cv2.ellipse(face, (x, y), (9, 4), 0, 0, 360, dark + 90, -1, cv2.LINE_AA)
        cv2.circle(face, (x, y), 3, dark, -1, cv2.LINE_AA)
        cv2.ellipse(face, (x, y - 8), (12, 5), 0, 200, 340, dark, 3, cv2.LINE_AA)
    cv2.ellipse(face, points[2], (6, 3), 0, 0, 180, dark + 50, 2, cv2.LINE_AA)
    (left, top), (right, bottom) = points[3], points[4]
    cv2.line(face, points[3], points[4], dark, 2, cv2.LINE_AA)
    lip = ((left + right) // 2, (top + bottom) // 2 + 3)
    cv2.ellipse(face, lip, ((right - left) // 3, 4), 0, 0, 180, dark + 40, 2, cv2.LINE_AA)
    return face
