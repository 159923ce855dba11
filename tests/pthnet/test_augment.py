"""The published recipes change samples as they say, and every frame of a clip alike."""

import numpy as np
import pytest

from pthnet.augment import AUGMENT, Augment, resize

RNG = np.random.default_rng


def frames(t=3, h=40, w=30, seed=0):
    one = RNG(seed).integers(0, 256, (1, h, w, 3), dtype=np.uint8)
    return np.repeat(one, t, axis=0)


@pytest.mark.parametrize("recipe", sorted(AUGMENT))
def test_every_frame_of_a_clip_is_changed_alike(recipe):
    for seed in range(8):
        out = AUGMENT[recipe].at(24)(frames(), RNG(seed))
        assert out.shape == (3, 24, 24, 3)
        assert out.dtype == np.uint8
        assert (out == out[:1]).all()


@pytest.mark.parametrize("recipe", sorted(AUGMENT))
def test_equal_generators_give_equal_pixels_and_others_do_not(recipe):
    augment = AUGMENT[recipe].at(24)
    assert (augment(frames(), RNG(1)) == augment(frames(), RNG(1))).all()
    assert (augment(frames(), RNG(1)) != augment(frames(), RNG(2))).any()


def test_the_recipes_are_the_published_ones():
    assert (AUGMENT["ec-stfl-video"].size, AUGMENT["ec-stfl-image"].size, AUGMENT["cfc-sp"].size) == (112, 224, 224)
    cfc = AUGMENT["cfc-sp"]
    assert (cfc.rotate, cfc.rotate_p, cfc.area) == (6.0, 0.5, (0.8, 1.0))
    assert (cfc.grey_p, cfc.jitter, cfc.jitter_p, cfc.blur_p, cfc.erase_p) == (0.2, 0.4, 0.8, 0.5, 0.5)


def test_crops_keep_to_the_stated_area_and_aspect():
    augment = AUGMENT["ec-stfl-video"]
    rng = RNG(0)
    crops = np.array([augment._crop(200, 200, rng) for _ in range(400)])
    y, x, h, w = crops.T
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + h <= 200).all()
    assert (x + w <= 200).all()
    area, aspect = h * w / 40_000, w / h
    assert 0.075 < area.min() < 0.15
    assert 0.9 < area.max() <= 1.0
    assert (aspect > 0.73).all()
    assert (aspect < 1.36).all()


def test_an_image_too_narrow_for_any_crop_is_cropped_in_the_middle():
    augment = Augment(size=8, area=(0.9, 1.0), crop_tries=3)
    assert augment._crop(300, 10, RNG(0)) == (143, 0, 13, 10)


def test_mirroring_happens_about_every_second_time():
    augment = Augment(size=16, flip_p=0.5)
    image = frames(1, 16, 16)
    mirrored = [bool((augment(image, RNG(s)) == image[:, :, ::-1]).all()) for s in range(200)]
    untouched = [bool((augment(image, RNG(s)) == image).all()) for s in range(200)]
    assert 70 < sum(mirrored) < 130
    assert sum(mirrored) + sum(untouched) == 200


def test_grey_has_no_colour_and_keeps_luma():
    out = Augment(size=16, grey_p=1.0)(frames(1, 16, 16), RNG(0))
    assert (out[..., 0] == out[..., 1]).all()
    assert (out[..., 1] == out[..., 2]).all()
    luma = frames(1, 16, 16) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out[..., 0] - luma).max() <= 0.51


def test_erasing_leaves_a_rectangle_of_the_mean_colour():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    out = Augment(size=32, erase_p=1.0)(image, RNG(3))
    erased = (out[0] == (124, 116, 104)).all(-1)
    rows, columns = erased.any(1).sum(), erased.any(0).sum()
    assert erased.sum() == rows * columns > 0
    assert 0.01 < erased.mean() < 0.25


def test_colour_jitter_of_a_grey_image_only_changes_its_brightness():
    image = np.full((1, 8, 8, 3), 100, np.uint8)
    out = Augment(size=8, jitter=0.4, jitter_p=1.0)(image, RNG(5))
    assert np.ptp(out.reshape(-1).astype(int)) <= 1
    assert 59 <= out[0, 0, 0, 0] <= 141


def test_rotation_stays_small_and_turns_about_the_centre():
    image = np.zeros((1, 65, 65, 3), np.uint8)
    image[0, 32, 32] = 255
    out = Augment(size=65, rotate=6.0, rotate_p=1.0)(image, RNG(0))
    assert out[0, 32, 32, 0] > 200


def test_resizing_averages_when_it_shrinks_and_copies_nothing_it_need_not():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checks[None, ..., None], 3, axis=3).astype(np.uint8)
    assert np.abs(resize(image, 16).astype(int) - 127).max() <= 1
    assert resize(image, 64) is image
    assert resize(image, 100).shape == (1, 100, 100, 3)
