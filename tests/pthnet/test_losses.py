"""The losses: golden values and gradients, and batches that would divide by zero."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pthnet.errors import ModelError
from pthnet.losses import ecstfl_loss, pyramid_loss

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_ecstfl_loss_and_gradient_equal_the_published_ones(batch: int, device: str) -> None:
    golden = np.load(GOLDEN / "ecstfl.npz")
    features = torch.from_numpy(golden[f"ecstfl/{batch}/features"]).to(device).requires_grad_()
    loss = ecstfl_loss(features, torch.from_numpy(golden[f"ecstfl/{batch}/labels"]).to(device))
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"ecstfl/{batch}/loss"]), abs=1e-5)
    assert features.grad is not None
    assert np.abs(features.grad.cpu().numpy() - golden[f"ecstfl/{batch}/grad"]).max() <= 1e-5


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(1, 8), torch.tensor([2])),
        (torch.randn(5, 8), torch.tensor([1] * 5)),
        (torch.ones(4, 8), torch.tensor([0, 1, 0, 1])),
    ],
    ids=["one sample", "one class", "identical features"],
)
def test_ecstfl_loss_is_finite_where_it_could_divide_by_zero(features: torch.Tensor, labels: torch.Tensor) -> None:
    features = features.clone().requires_grad_()
    loss = ecstfl_loss(features, labels)
    loss.backward()
    assert features.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()


def test_pyramid_loss_parts_add_up_and_teach_only_the_coarser_levels() -> None:
    logits = {level: torch.randn(6, 7, requires_grad=True) for level in ("high", "middle", "low")}
    target = torch.arange(6)
    total, parts = pyramid_loss(logits, target)
    total.backward()
    assert set(parts) == {"ce", "kl_middle", "kl_low"}
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    alone = logits["high"].detach().clone().requires_grad_()
    F.cross_entropy(alone, target).backward()
    torch.testing.assert_close(logits["high"].grad, alone.grad)  # no gradient from the divergences
    assert logits["low"].grad is not None


def test_pyramid_loss_takes_the_finest_level_present() -> None:
    logits = {level: torch.randn(4, 5) for level in ("low", "middle")}
    _, parts = pyramid_loss(logits, torch.tensor([0, 1, 2, 3]))
    assert parts["ce"] == F.cross_entropy(logits["middle"], torch.tensor([0, 1, 2, 3]))
    assert set(parts) == {"ce", "kl_low"}
    only, parts = pyramid_loss({"low": logits["low"]}, torch.tensor([0, 1, 2, 3]))
    assert set(parts) == {"ce"}
    assert only == parts["ce"]


def test_pyramid_loss_of_nothing_says_so() -> None:
    with pytest.raises(ModelError, match="at least one of high, middle, low"):
        pyramid_loss({}, torch.tensor([0]))


def test_class_weights_and_label_smoothing_reach_the_cross_entropy() -> None:
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    total, _ = pyramid_loss({"high": logits}, target, class_weight=weight, label_smoothing=0.1)
    assert total == F.cross_entropy(logits, target, weight=weight.float(), label_smoothing=0.1)
