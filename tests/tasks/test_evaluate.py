"""Evaluation: deterministic, whatever the batch; fusion and the choice of its weight."""

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.pth_net import FusedPTHNet, PTHNet, PTHNetConfig
from tasks.evaluate import choose_mu, data_digest, fuse, logits_of
from tasks.sampling import DeviceTable
from tests.archives import feature_set

CONFIG = PTHNetConfig(in_dim=16, dim=16, mlp_dim=16, num_classes=3)
TABLE = DeviceTable(feature_set(clips=20), torch.device("cpu"))


def network(seed: int = 0) -> PTHNet:
    torch.manual_seed(seed)
    return PTHNet(CONFIG)


def test_logits_do_not_depend_on_the_batch_and_training_mode_is_left_as_it_was() -> None:
    model = network().train()
    whole, features = logits_of(model, TABLE, np.arange(20), with_features=True)
    apart, _ = logits_of(model, TABLE, np.arange(20), batch=3)
    torch.testing.assert_close(whole, apart, atol=1e-5, rtol=1e-5)
    assert features is not None
    assert features.shape == (20, 16)
    assert model.training


def test_rows_come_back_in_the_order_they_were_asked_for() -> None:
    model, rows = network(), np.array([7, 3, 19])
    torch.testing.assert_close(
        logits_of(model, TABLE, rows)[0], logits_of(model, TABLE, np.arange(20))[0][rows], atol=1e-5, rtol=1e-5
    )


def test_fusing_logits_is_what_the_fused_network_computes() -> None:
    forward, reverse = network(0).eval(), network(1).eval()
    pyramid = TABLE.pyramid(torch.arange(20), ("high",))
    expected = FusedPTHNet(forward, reverse, 0.7)(pyramid, pyramid).detach().numpy()
    parts = [logits_of(model, TABLE, np.arange(20))[0].numpy() for model in (forward, reverse)]
    np.testing.assert_allclose(fuse(*parts, 0.7), expected, atol=1e-5)


def test_one_direction_alone_is_its_own_fusion() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert fuse(None, logits, 0.7) is logits
    with pytest.raises(ModelError, match="nothing to fuse"):
        fuse(None, None, 0.7)


def test_mu_goes_to_the_direction_that_is_right() -> None:
    target = np.array([0, 1, 2] * 10)
    right, wrong = 5 * np.eye(3)[target], 5 * np.eye(3)[(target + 1) % 3]
    assert choose_mu(right, wrong, target, 3) > 0.5
    assert choose_mu(wrong, right, target, 3) < 0.5
    assert choose_mu(right, right, target, 3) == 0.7  # nothing to choose: the published weight


def test_evaluation_data_is_known_by_its_clips_and_labels_in_any_order() -> None:
    ids, labels = np.array(["a", "b"]), np.array([0, 1])
    assert data_digest(ids, labels) == data_digest(ids[::-1], labels[::-1])
    assert data_digest(ids, labels) != data_digest(ids, labels[::-1])
