"""Swin-S is timm's without the final norm; its windows, shifts and position biases do what the paper says."""

import math

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.swin import Swin, SwinConfig

SMALL = SwinConfig(num_classes=5, image_size=56, dim=8, depths=(2, 2), heads=(2, 4), drop_path=0.0)


@pytest.mark.parametrize(
    ("classes", "final_norm", "count"),
    [(8, False, 48_841_874), (5, False, 48_839_567), (4, False, 48_838_798), (1000, True, 49_606_258)],
)
def test_it_has_the_number_of_parameters_of_its_formula(classes, final_norm, count):
    config = SwinConfig(num_classes=classes, final_norm=final_norm)
    with torch.device("meta"):
        model = Swin(config)
    assert sum(p.numel() for p in model.parameters()) == config.count_parameters() == count


def test_its_names_and_shapes_are_timms():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Swin().state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (96, 3, 4, 4)
    assert shapes["layers.1.downsample.reduction.weight"] == (192, 384)
    assert shapes["layers.2.blocks.17.attn.relative_position_bias_table"] == (169, 12)
    assert shapes["layers.3.blocks.1.mlp.fc1.weight"] == (3072, 768)
    assert shapes["head.fc.weight"] == (8, 768)
    assert not [name for name in shapes if name.startswith("norm.") or "index" in name or "mask" in name]


def test_it_works_on_224_pixels():
    model = Swin(SwinConfig(dim=8, depths=(1, 1, 2, 1), heads=(1, 1, 2, 2))).eval()
    assert model(torch.rand(1, 3, 224, 224)).shape == (1, 8)


def test_attention_stays_inside_shifted_windows_and_never_wraps_round_the_image():
    """The block against attention spelled out over all pairs of tokens of the whole grid."""
    torch.manual_seed(0)
    block = Swin(SMALL).layers[0].blocks[1].eval()
    grid, window, shift, heads = 14, 7, 3, 2
    assert block.shift == shift
    x = torch.randn(2, grid, grid, SMALL.dim)
    place = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1).reshape(-1, 2)
    # windows shifted by 3 start at -4, 3 and 10: the outer ones are cut by the image's edge
    cell = (place - shift + window) // window
    together = (cell[:, None] == cell[None, :]).all(-1)
    apart = (place[:, None] - place[None, :]).clamp(-6, 6) + 6
    bias = block.attn.relative_position_bias_table[apart[..., 0] * 13 + apart[..., 1]].permute(2, 0, 1)
    q, k, v = block.attn.qkv(x.reshape(2, -1, SMALL.dim)).view(2, -1, 3, heads, 4).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(4) + bias).masked_fill(~together, float("-inf"))
    wanted = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, -1, SMALL.dim))
    torch.testing.assert_close(block._attend(x).reshape(2, -1, SMALL.dim), wanted, atol=1e-5, rtol=1e-5)


def test_a_grid_of_one_window_is_not_shifted():
    assert Swin(SMALL).layers[1].blocks[1].shift == 0


def test_every_parameter_learns_and_drop_path_is_off_in_evaluation():
    model = Swin(SwinConfig(num_classes=5, image_size=56, dim=8, depths=(2, 2), heads=(2, 4), drop_path=0.9))
    images = torch.rand(2, 3, 56, 56)
    assert torch.equal(model.eval()(images), model(images))
    model = Swin(SMALL)
    model(images).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_size": 200}, "multiple of 32"),
        ({"image_size": 256}, "do not tile"),
        ({"heads": (3, 6, 12)}, "equally many"),
        ({"dim": 98}, "do not split"),
    ],
)
def test_impossible_sizes_are_refused(settings, said):
    with pytest.raises(ModelError, match=said):
        SwinConfig(**settings)


def test_images_of_another_size_are_refused():
    with pytest.raises(ModelError, match="resize the images"):
        Swin(SMALL)(torch.rand(1, 3, 64, 64))
