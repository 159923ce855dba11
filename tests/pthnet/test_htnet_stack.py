"""Stacked HTNets are the single ones: same outputs, same training, same files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pthnet import matmul
from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig
from pthnet.htnet_stack import HTNetStack, _Convolution, _Layer, stack_of
from pthnet.matmul import FLOAT32_ERROR, fastest_exact_matmul, float32_on_cuda

SMALL = HTNetConfig(dim=12, depths=(1, 1, 2))
FULL = HTNetConfig(dim=12, depths=(1, 1, 2), attention="block-full")


def single_models(seeds):
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(HTNet(FULL))
    return models


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (20, 3, 28, 28)).astype(np.float32))


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_a_stack_gives_the_logits_of_its_models(images, seeds, device):
    stack = stack_of(SMALL, seeds, device)
    logits = stack(stack.patches(images.to(device)).expand(len(seeds), -1, -1, -1)).cpu()
    expected = torch.stack([model(images) for model in single_models(seeds)])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_other_grids_of_single_tokens_are_stacked_too():
    config = HTNetConfig(dim=6, depths=(1, 1, 1, 1), image_size=56)  # grids of 8, 4, 2, 1
    torch.manual_seed(3)
    model, images = HTNet(config), torch.rand(2, 3, 56, 56)
    stack = HTNetStack(config, [model.state_dict()])
    torch.testing.assert_close(stack(stack.patches(images)[None])[0], model(images), rtol=1e-5, atol=1e-5)


def test_twenty_adam_steps_of_a_stack_are_those_of_full_attention_models(images, device):
    images, target = images.to(device), (torch.arange(20) % 3).to(device)
    models, stack = [model.to(device) for model in single_models([0, 1])], stack_of(SMALL, [0, 1], device)
    before = [{name: value.to("cpu", copy=True) for name, value in model.state_dict().items()} for model in models]
    patches = stack.patches(images).expand(2, -1, -1, -1)
    together = torch.optim.Adam(stack.parameters.values(), lr=5e-5, fused=True)
    alone = [torch.optim.Adam(model.parameters(), lr=5e-5) for model in models]
    for _ in range(20):
        together.zero_grad()
        losses = (
            F.cross_entropy(stack(patches).flatten(0, 1), target.repeat(2), reduction="none").reshape(2, -1).mean(1)
        )
        losses.sum().backward()
        together.step()
        for index, (model, adam) in enumerate(zip(models, alone, strict=True)):
            adam.zero_grad()
            loss = F.cross_entropy(model(images), target)
            loss.backward()
            adam.step()
            torch.testing.assert_close(losses[index], loss, rtol=1e-4, atol=1e-5)
    for index, model in enumerate(models):
        exported = {name: value.cpu() for name, value in stack.state_dict(index).items()}
        for name, value in model.cpu().state_dict().items():
            if name == "layers.2.0.pos_emb":
                continue  # shifts all channels alike, which every later norm removes: its gradient is rounding noise
            torch.testing.assert_close(exported[name], value, rtol=1e-3, atol=2e-5, msg=name)
            if "to_qkv" in name:
                rows = 2 * len(value) // 3
                assert torch.equal(value[:rows], before[index][name][:rows]), "Adam leaves q and k where they were"
                assert torch.equal(exported[name][:rows], value[:rows])


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("tokens", [3, 20])
def test_the_gradients_of_a_layer_are_its_own(models, tokens):
    channels, hidden, draw = 4, 8, torch.Generator().manual_seed(0)
    shapes = [(tokens, channels), (channels,), (channels,), (3, channels), (channels, 3), (channels,)]
    shapes += [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    given = [torch.randn(models, *shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(_Layer.apply, given)


@pytest.mark.parametrize("side", [3, 4])
def test_the_convolution_and_its_gradients_are_pytorch_s(side):
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(2, *shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((3, side, side, 2), (4, 3, 3, 2), (4,))
    )
    expected = [
        F.conv2d(one.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2), added, padding=1)
        .permute(0, 2, 3, 1)
        .reshape(-1, 4)
        for one, kernel, added in zip(x, weight, bias, strict=True)
    ]
    torch.testing.assert_close(_Convolution.apply(x, weight, bias), torch.stack(expected))
    assert torch.autograd.gradcheck(_Convolution.apply, (x, weight, bias))


def test_stacks_whose_blocks_hold_several_tokens_are_refused():
    config = HTNetConfig(dim=12, depths=(1, 1, 1), attention="grid")
    with pytest.raises(ModelError, match="one token"):
        HTNetStack(config, [HTNet(config).state_dict()])


def test_a_stack_of_seeds_is_one_of_the_seeded_models_to_the_bit(device):
    stack = stack_of(SMALL, [4, 5, 6], device)
    for model, seed in enumerate([4, 5, 6]):
        expected = HTNet.seeded(SMALL, seed).state_dict()
        found = stack.state_dict(model)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in stack.parameters.values())


def test_states_of_another_configuration_are_refused():
    state = HTNet(SMALL).state_dict()
    with pytest.raises(ModelError, match=r"lacks layers\.0\.0\.pos_emb"):
        HTNetStack(SMALL, [state, {name: value for name, value in state.items() if name != "layers.0.0.pos_emb"}])
    with pytest.raises(ModelError, match="no place"):
        HTNetStack(HTNetConfig(dim=6, depths=(1, 1, 2)), [state])


@pytest.mark.parametrize(("tf32", "products"), [(False, "highest"), (True, "high")])
def test_float32_on_a_gpu_is_exact_or_tf32_in_products_and_convolutions_alike(tf32, products):
    before = torch.backends.cudnn.allow_tf32
    with float32_on_cuda("cuda", tf32=tf32):
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 is before
    with float32_on_cuda("cpu", tf32=tf32):
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_faster_product_is_taken_only_where_it_is_exact_and_given_back():
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    with fastest_exact_matmul() as route:
        product = a @ b
    assert route in ("onednn", "default")
    exact = a.double() @ b.double()
    assert ((product - exact).abs().max() / exact.abs().max()).item() <= FLOAT32_ERROR
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_processor_that_rounds_its_products_keeps_the_default(monkeypatch):
    monkeypatch.setattr(torch, "bmm", lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    monkeypatch.setattr(matmul, "_still_float32", matmul._still_float32.__wrapped__)  # not what was found before
    with fastest_exact_matmul() as route:
        assert route == "default"
        assert torch.get_float32_matmul_precision() == "highest"
