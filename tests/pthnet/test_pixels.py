from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pthnet.errors import ModelError
from pthnet.pixels import resize_frames, resize_uint8, shipped_size, to_pixels, windows_to_pixels

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae_small.npz"


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_are_the_published_ones():
    golden = np.load(GOLDEN)
    for frames, pixels in zip(golden["frames"], golden["pixels"], strict=True):
        ours = to_pixels(frames, 32)
        assert ours.dtype == torch.float32
        assert np.abs(ours.numpy() - pixels).max() <= 1e-5


def test_imagenet_normalisation_is_applied_per_channel():
    frames = noise(3, 20, 24, 3)
    plain, ours = to_pixels(frames, 16), to_pixels(frames, 16, normalize="imagenet")
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(ours[channel], (plain[channel] - mean) / std)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 400), st.integers(4, 400), st.sampled_from([16, 64, 112]))
def test_the_fast_resize_stays_within_one_grey_level_of_the_rule(height, width, size):
    frames = noise(1, height, width, 3)
    error = np.abs(resize_uint8(frames, size) - resize_frames(frames, size).permute(0, 2, 3, 1).numpy() * 255)
    assert error.max() < 0.9
    assert error.mean() < 0.3


def test_frames_of_the_right_size_are_passed_on_untouched():
    frames = noise(2, 32, 32, 3)
    assert resize_uint8(frames, 32) is frames
    assert np.array_equal(resize_frames(frames, 32).permute(0, 2, 3, 1).mul(255).round().numpy(), frames)


def test_windows_share_the_frames_they_overlap_in():
    frames = torch.from_numpy(noise(20, 16, 16, 3))
    index = torch.tensor([list(range(16)), list(range(4, 20)), list(range(19, 3, -1))])
    expected = torch.stack([to_pixels(frames[rows], 16) for rows in index])
    torch.testing.assert_close(windows_to_pixels(frames, index), expected, rtol=0, atol=0)
    torch.testing.assert_close(windows_to_pixels(resize_frames(frames, 16), index), expected, rtol=0, atol=0)


def test_bfloat16_pixels_are_the_float_ones_rounded_once():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(16, 16, 16, 3)
    index = torch.arange(16)[None]
    half = windows_to_pixels(frames, index, dtype=torch.bfloat16)
    assert torch.equal(half, windows_to_pixels(frames, index).to(torch.bfloat16))


def test_exact_features_need_frames_at_their_native_size():
    assert shipped_size("fp32", 224) is None
    assert shipped_size("bf16", 224) == (224, 224)
    with pytest.raises(ModelError, match="fp32 or bf16"):
        shipped_size("fp16", 224)


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8)])
def test_frames_in_another_layout_are_refused(bad):
    for resize in (resize_frames, resize_uint8):
        with pytest.raises(ModelError, match=r"uint8 \[T, H, W, 3\]; found"):
            resize(bad, 8)
    with pytest.raises(ModelError, match="none or imagenet"):
        to_pixels(noise(1, 8, 8, 3), 8, normalize="zscore")
