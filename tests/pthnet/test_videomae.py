from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from pthnet.errors import ModelError
from pthnet.videomae import VideoMAE, VideoMAEConfig, _attend_head_by_head, flops, parameter_count, run_block

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae_small.npz"
SMALL = VideoMAEConfig(image_size=32, patch_size=16, dim=48, depth=3, heads=4, mlp_dim=48 * 48 // 11, num_classes=10)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def model(golden):
    model = VideoMAE(SMALL)
    weights = {k.removeprefix("weights/"): torch.from_numpy(v) for k, v in golden.items() if k.startswith("weights/")}
    model.load_state_dict(weights)  # strict: the names are the published ones, no more and no fewer
    return model.eval()


@torch.no_grad()
def test_features_and_logits_are_the_published_ones(golden, model, device):
    pixels, model = torch.from_numpy(golden["pixels"]).to(device), deepcopy(model).to(device)
    assert np.abs(model(pixels).cpu().numpy() - golden["features"]).max() <= 1e-5
    assert np.abs(model.logits(pixels).cpu().numpy() - golden["logits"]).max() <= 1e-5


@torch.no_grad()
def test_one_compiled_block_serves_for_all(golden, model):
    counter = CompileCounter()
    compiled = torch.compile(run_block, backend=counter, dynamic=False)
    pixels = torch.from_numpy(golden["pixels"])
    assert torch.equal(model(pixels, compiled), model(pixels))
    assert (counter.frame_count, SMALL.depth) == (1, 3)


@torch.no_grad()
def test_bfloat16_weights_give_nearly_the_same_features_in_float32(golden, model, device):
    half = VideoMAE(SMALL)
    half.load_state_dict(model.state_dict())
    features = half.to(device, torch.bfloat16).eval()(torch.from_numpy(golden["pixels"]).to(device)).cpu()
    assert features.dtype == torch.float32
    reference = torch.from_numpy(golden["features"])
    assert torch.cosine_similarity(features, reference).min() > 0.9995


@torch.no_grad()
def test_the_patch_embedding_is_the_published_convolution(golden, model):
    pixels = torch.from_numpy(golden["pixels"])
    convolved = nn.functional.conv3d(
        pixels, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=(2, 16, 16)
    )
    torch.testing.assert_close(model.patch_embed(pixels), convolved.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [("small", 22_153_286, 384), ("base", 86_773_190, 768), ("giant", 1_012_611_142, 1408)],
)
def test_published_sizes(name, parameters, dim):
    config = VideoMAEConfig.named(name, num_classes=710)
    assert config.dim == dim
    assert parameter_count(config) == parameters


def test_features_need_no_head():
    assert parameter_count(VideoMAEConfig.named("small")) == 22_153_286 - 710 * 385
    with torch.device("meta"), pytest.raises(ModelError, match="num_classes"):
        VideoMAE(VideoMAEConfig.named("tiny")).logits(torch.zeros(1, 3, 16, 64, 64))


def test_the_operations_of_the_giant_are_counted():
    # 2 operations per parameter and token of the blocks, plus attention's two products over 2048 tokens.
    config = VideoMAEConfig.named("giant")
    assert config.num_tokens == 2048
    by_hand = 2048 * 2 * 40 * (4 * 1408**2 + 2 * 1408 * 6144) + 40 * 4 * 2048**2 * 1408 + 2 * 2048 * 1176 * 1408
    assert flops(config) == by_hand


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before():
    config = VideoMAEConfig.named("tiny")
    first = VideoMAE.seeded(config, 3).state_dict()
    torch.rand(5)
    before = torch.get_rng_state()
    second = VideoMAE.seeded(config, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc_norm.weight"], torch.zeros(192))
    other = VideoMAE.seeded(config, 4).state_dict()
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert "positions" not in first


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="known: tiny, small, base, large, huge, giant"):
        VideoMAEConfig.named("gigantic")
    with pytest.raises(ModelError, match="multiple of heads"):
        VideoMAEConfig(dim=100, heads=3)
    with pytest.raises(ModelError, match="multiple of patch_size"):
        VideoMAEConfig(image_size=100)
    with torch.device("meta"), pytest.raises(ModelError, match=r"found \[1, 3, 8, 64, 64\]"):
        VideoMAE(VideoMAEConfig.named("tiny"))(torch.zeros(1, 3, 8, 64, 64))


def test_heads_one_by_one_are_the_attention_of_all() -> None:
    """What bfloat16 on the CPU takes, against the fused product in float32."""
    qkv = torch.randn(2, 50, 3, 4, 16, generator=torch.Generator().manual_seed(3))  # [B, N, qkv, h, D/h]
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(_attend_head_by_head(qkv), expected)
    torch.testing.assert_close(_attend_head_by_head(qkv.bfloat16()).float(), expected, atol=0.02, rtol=0.02)
