"""The 3-D ResNet-18 is torchvision's r3d_18, name for name."""

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.r3d import R3D18, R3DConfig


def test_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = R3D18()
    assert sum(p.numel() for p in model.parameters()) == 33_169_863


def test_its_names_and_shapes_are_torchvisions():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in R3D18().state_dict().items()}
    assert shapes["stem.0.weight"] == (64, 3, 3, 7, 7)
    assert shapes["layer1.0.conv1.0.weight"] == (64, 64, 3, 3, 3)
    assert shapes["layer3.1.conv2.1.running_mean"] == (256,)
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1, 1)
    assert shapes["fc.weight"] == (7, 512)


def test_a_small_one_gives_features_and_logits():
    model = R3D18(R3DConfig(num_classes=3, width=4, depths=(1, 1))).eval()
    clips = torch.rand(2, 3, 16, 24, 24)
    features = model.features(clips)
    assert features.shape == (2, model.config.feature_dim) == (2, 8)
    assert torch.equal(model.classify(features), model(clips))


def test_impossible_sizes_are_refused():
    with pytest.raises(ModelError, match="at least 1"):
        R3DConfig(width=0)
