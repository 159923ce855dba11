"""HTNet against the published model's numbers, and the exact fast path of its one-token attention."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "htnet_small.npz"
SMALL = HTNetConfig(dim=12, depths=(1, 1, 2))


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN)
    weights = {k.removeprefix("weights/"): torch.from_numpy(arrays[k]) for k in arrays if k.startswith("weights/")}
    return weights, torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["output"])


@pytest.mark.parametrize("attention", ["block", "block-full"])
def test_published_names_load_and_give_the_published_logits(golden, attention, device):
    weights, images, expected = golden
    model = HTNet(replace(SMALL, attention=attention)).eval()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        assert (model.to(device)(images.to(device)).cpu() - expected).abs().max() <= 1e-5


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = HTNet(HTNetConfig())
    assert sum(p.numel() for p in model.parameters()) == 139_582_982


def test_fast_path_has_the_same_gradients_and_none_for_q_and_k(golden):
    weights, images, _ = golden
    target = torch.tensor([0, 1, 2, 0])
    gradients = {}
    for attention in ("block", "block-full"):
        model = HTNet(replace(SMALL, attention=attention))
        model.load_state_dict(weights)
        torch.nn.functional.cross_entropy(model(images), target).backward()
        gradients[attention] = {name: p.grad for name, p in model.named_parameters()}
    for name, full in gradients["block-full"].items():
        torch.testing.assert_close(gradients["block"][name], full, rtol=1e-4, atol=1e-6, msg=name)
        if "to_qkv" in name:
            assert torch.count_nonzero(full[: 2 * len(full) // 3]) == 0, "one token's softmax is constant"


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, dim=7, attention="grid"),
        HTNetConfig(dim=10, depths=(2, 1, 1, 1), image_size=56, attention="block-full", dropout=0.1, num_classes=5),
    ],
)
def test_seeded_models_are_those_of_pytorchs_own_generator_to_the_bit(config):
    untouched = torch.get_rng_state()
    seeded = HTNet.seeded(config, 3)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.manual_seed(3)
    expected = HTNet(config).state_dict()
    assert list(seeded.state_dict()) == list(expected)
    for name, value in seeded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert all(parameter.requires_grad for parameter in seeded.parameters())


def test_grid_attention_lets_one_face_part_change_how_another_is_read():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 28, 28, requires_grad=True)
    for attention, mixes in (("block", False), ("grid", True)):
        model = HTNet(replace(SMALL, attention=attention))
        grid = model.to_patch_embedding(images)
        out = model.layers[0][0](grid)[0, :, 0, 0].sum()  # the first level's token of the top left patch
        (gradient,) = torch.autograd.grad(out, images)
        assert bool(gradient[:, :, 14:, 14:].abs().sum() > 0) is mixes


def test_larger_images_put_several_tokens_into_a_published_block():
    config = replace(SMALL, image_size=56)
    assert [config.block_side(level) for level in range(3)] == [2, 2, 2]
    assert HTNet(config)(torch.rand(2, 3, 56, 56)).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 30}, "multiple of patch_size"),
        ({"image_size": 21}, "halved"),
        ({"dim": 2}, "at least heads"),
        ({"attention": "global"}, "choose block"),
    ],
)
def test_impossible_sizes_are_refused_with_the_remedy(settings, message):
    with pytest.raises(ModelError, match=message):
        HTNetConfig(**settings)


def test_images_of_another_size_are_refused():
    with pytest.raises(ModelError, match=r"expected images \[B, 3, 28, 28\], found \[2, 3, 32, 32\]"):
        HTNet(SMALL)(torch.rand(2, 3, 32, 32))
