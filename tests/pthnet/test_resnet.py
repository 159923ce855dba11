"""ResNet-18 is torchvision's, name for name."""

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.resnet import ResNet18, ResNetConfig


def test_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = ResNet18()
    assert sum(p.numel() for p in model.parameters()) == 11_180_103


def test_its_names_and_shapes_are_torchvisions():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ResNet18().state_dict().items()}
    assert len(shapes) == 122
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.1.bn2.running_var"] == (64,)
    assert "layer1.0.downsample.0.weight" not in shapes
    assert shapes["layer4.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["fc.weight"] == (7, 512)


def test_a_small_one_gives_features_and_logits():
    model = ResNet18(ResNetConfig(num_classes=3, width=4, depths=(1, 1))).eval()
    images = torch.rand(2, 3, 40, 40)
    features = model.features(images)
    assert features.shape == (2, model.config.feature_dim) == (2, 8)
    assert torch.equal(model.classify(features), model(images))


def test_impossible_sizes_are_refused():
    with pytest.raises(ModelError, match="at least 1"):
        ResNetConfig(depths=())
