"""Optical flow, strain and the four-part crop, on motion that is known."""

import cv2
import numpy as np
import pytest

from pthnet.errors import ModelError
from pthnet.flow import FALLBACK_LANDMARKS, flow_image, four_parts, optical_flow, optical_strain, part_corners


@pytest.fixture(scope="module")
def face():
    noise = np.random.default_rng(0).uniform(0, 255, (96, 96)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(face, u, v):
    """The image whose content went by u to the right and v downwards."""
    rows, columns = np.indices(face.shape, dtype=np.float32)
    return cv2.remap(
        face, columns - np.float32(u), rows - np.float32(v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


@pytest.mark.parametrize("method", ["tvl1", "farneback"])
def test_flow_finds_a_known_shift_in_pixels_right_and_down(face, method):
    flow = optical_flow(face, moved(face, 1.5, -0.75), method)
    inner = flow[16:-16, 16:-16]
    assert flow.dtype == np.float32
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [1.5, -0.75], atol=0.2)


def test_strain_is_zero_for_a_moving_head_and_known_for_a_stretched_one():
    rows, columns = np.indices((32, 32), dtype=np.float32)
    assert optical_strain(np.full((32, 32, 2), 3.0, np.float32)).max() == 0
    stretched = np.stack([0.1 * columns, np.zeros_like(rows)], axis=-1)
    np.testing.assert_allclose(optical_strain(stretched), 0.1, rtol=1e-4)
    sheared = np.stack([0.1 * rows, np.zeros_like(rows)], axis=-1)
    np.testing.assert_allclose(optical_strain(sheared), 0.1 / np.sqrt(2), rtol=1e-4)
    turned = np.stack([-0.1 * rows, 0.1 * columns], axis=-1)
    np.testing.assert_allclose(optical_strain(turned), 0, atol=1e-6)


def test_flow_image_scales_each_channel_by_itself_in_the_order_strain_v_u(face):
    rows, _ = np.indices(face.shape, dtype=np.float32)
    rising = 2.0 * rows / rows.max()  # u grows downwards, v is nearly nothing
    image = flow_image(face, moved(face, rising, 0), "farneback")
    assert image.shape == (28, 28, 3)
    assert image.dtype == np.uint8
    assert (image.reshape(-1, 3).min(axis=0) == 0).all()
    assert (image.reshape(-1, 3).max(axis=0) == 255).all()
    u = image[..., 2].astype(float)
    assert u[-6:-2].mean() > u[2:6].mean() + 100


def test_a_face_that_does_not_move_gives_an_image_of_zeros():
    still = np.full((40, 40), 90, np.uint8)
    assert flow_image(still, still, "farneback").max() == 0


def test_images_of_two_sizes_and_unknown_methods_are_refused(face):
    with pytest.raises(ModelError, match="one size"):
        optical_flow(face, face[:-1])
    with pytest.raises(ModelError, match="choose one of tvl1, farneback"):
        optical_flow(face, face, "raft")


def test_published_crop_takes_x_for_the_row_and_the_corrected_one_y():
    # truncated, then half a part up and left: left eye (9.53, 11.06) -> 9 - 7, 11 - 7
    assert part_corners().tolist() == [[2, 4], [14, 3], [3, 14], [13, 14]]
    assert part_corners(axes="corrected").tolist() == [[4, 2], [3, 14], [14, 3], [14, 13]]


def test_four_parts_show_the_eyes_above_the_mouth_corners():
    coordinates = np.stack([*np.indices((28, 28)), np.zeros((28, 28))], axis=-1).astype(np.uint8)
    parts = four_parts(coordinates, axes="corrected")
    assert parts.shape == (28, 28, 3)
    corners = [parts[r, c, :2].tolist() for r, c in ((0, 0), (0, 14), (14, 0), (14, 14))]
    assert corners == [[4, 2], [3, 14], [14, 3], [14, 13]]
    assert parts[13, 13, :2].tolist() == [17, 15]


def test_landmarks_near_the_border_are_clamped_so_that_every_part_is_whole():
    wild = FALLBACK_LANDMARKS.copy()
    wild[0], wild[4] = (-3.0, 2.0), (40.0, 27.9)
    assert part_corners(wild)[[0, 3]].tolist() == [[0, 0], [14, 14]]


@pytest.mark.parametrize("landmarks", [np.zeros((4, 2)), np.full((5, 2), np.nan)])
def test_landmarks_that_are_not_five_points_are_refused(landmarks):
    with pytest.raises(ModelError, match="five landmarks"):
        part_corners(landmarks)


def test_a_flow_image_of_another_size_is_refused():
    with pytest.raises(ModelError, match=r"expected a flow image \[28, 28, 3\], found \[32, 28, 3\]"):
        four_parts(np.zeros((32, 28, 3), np.uint8))
