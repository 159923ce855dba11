"""One description builds each network and feeds it pixels as published."""

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel

SEVEN = tuple("abcdefg")


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        (FrameModel(model="r3d_18", classes=SEVEN), 33_169_863),
        (FrameModel(model="resnet18", classes=SEVEN), 11_180_103),
        (FrameModel(model="swin_s", classes=tuple("abcde"), head="coarse"), 48_839_567),
    ],
)
def test_the_defaults_are_the_published_networks(spec, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in spec.build().parameters()) == parameters


@pytest.mark.parametrize(
    ("model", "frames", "shape"), [("r3d_18", 16, (2, 3, 16, 8, 8)), ("resnet18", 1, (2, 3, 8, 8))]
)
def test_pixels_are_rgb_over_255(model, frames, shape):
    given = torch.randint(0, 256, (2, frames, 8, 8, 3), dtype=torch.uint8)
    pixels = FrameModel(model=model, classes=SEVEN).pixels(given)
    assert pixels.shape == shape
    assert pixels[1, 2].flatten()[5] == given[1, ..., 2].flatten()[5] / 255


def test_swin_takes_imagenets_mean_and_deviation():
    grey = torch.full((1, 1, 2, 2, 3), 124, dtype=torch.uint8)
    pixels = FrameModel(model="swin_s", classes=SEVEN).pixels(grey)
    assert pixels[0, 0, 0, 0].item() == pytest.approx((124 / 255 - 0.485) / 0.229, abs=1e-6)


def test_descriptions_survive_json():
    spec = FrameModel(model="swin_s", classes=SEVEN, image_size=56, width=12, depths=(2, 2))
    again = FrameModel.from_json(spec.to_json())
    assert again == spec
    assert again.build().eval()(again.pixels(torch.zeros(1, 1, 56, 56, 3, dtype=torch.uint8))).shape == (1, 7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrameModel(model="r4d", classes=SEVEN),
        lambda: FrameModel(model="r3d_18", classes=("one",)),
        lambda: FrameModel.from_json("{}"),
        lambda: FrameModel.from_json("[1]"),
    ],
)
def test_impossible_descriptions_are_refused(make):
    with pytest.raises(ModelError):
        make()
