"""An actor of the prediction pool: batches in, logits out, on the device that it is told."""

import warnings

import numpy as np
import pytest
import torch

from pthnet.frame_models import FrameModel
from tasks.frame_batches import FrameBatch, upload
from tasks.frame_predict import FramePredictor

SPEC = FrameModel(model="resnet18", classes=("a", "b", "c"), image_size=32, width=8, depths=(1, 1, 1))


def batch() -> FrameBatch:
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    return FrameBatch(
        training=False, epoch=0, index=np.array([4, 2, 7]), labels=np.array([0, -1, 2]), frames=frames,
        readable=np.array([True, False, True]), failures=["gone.jpg: nothing"],
    )  # fmt: skip


def test_logits_are_the_networks_on_every_device(device: str) -> None:
    torch.manual_seed(0)
    model = SPEC.build().eval()
    given = batch()
    found = FramePredictor(SPEC, model.state_dict(), device=device)(given.to_arrow())
    with torch.inference_mode():
        wanted = model(SPEC.pixels(torch.from_numpy(given.frames))).numpy()
    logits = np.stack(found["logits"].to_numpy(zero_copy_only=False))
    assert found["index"].to_pylist() == [4, 2, 7]
    assert np.isnan(logits[1]).all()
    np.testing.assert_allclose(logits[[0, 2]], wanted[[0, 2]], atol=1e-5)
    assert found["failures"].to_pylist() == [["gone.jpg: nothing"], [], []]


def test_it_stays_where_it_is_told_to_be_though_a_gpu_is_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    predictor = FramePredictor(SPEC, SPEC.build().state_dict())
    assert {parameter.device.type for parameter in predictor.model.parameters()} == {"cpu"}
    assert len(predictor(batch().to_arrow())) == 3


def test_frames_that_cannot_be_written_to_are_uploaded_without_a_word(device: str) -> None:
    given = batch().frames
    given.flags.writeable = False  # as Ray's object store gives them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = upload(given, device)
    assert there.device.type == device
    assert np.array_equal(there.cpu().numpy(), given)
