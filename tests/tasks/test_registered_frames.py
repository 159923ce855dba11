"""A registered frame model answers for images, paths and folders, and champions are compared on one list only."""

import base64

import cv2
import numpy as np
import pytest
import torch

from pthnet.frame_models import FrameModel
from pthnet.frame_weights import load_frame_model, save_frame_model
from tasks.frame_batches import read_sample
from tasks.registered_frames import fetch_frames, register_frames
from tasks.tracking import Tracker, at

SPEC = FrameModel(model="resnet18", classes=("Happy", "Sad"), image_size=16, width=4, depths=(1,))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    out = tmp_path_factory.mktemp("registry")
    return out, Tracker(f"sqlite:///{out}/mlflow.db", "frames", f"{out}/mlartifacts")


def version(registry, seed, **scores):
    out, tracker = registry
    torch.manual_seed(seed)
    save_frame_model(out / str(seed), SPEC, SPEC.build(), {})
    run = tracker.begin(f"run {seed}", str(seed), {})
    return register_frames(tracker, run, out / str(seed), SPEC, "faces", scores=scores, data="one list")


def test_a_better_version_becomes_champion_and_serves_what_the_network_says(registry):
    import mlflow

    out, tracker = registry
    assert version(registry, 1, uar=0.5, war=0.5).champion
    assert not version(registry, 2, uar=0.4, war=0.9).champion
    folder = fetch_frames(tracker.uri, "models:/faces@champion")
    assert (folder / "model.safetensors").read_bytes() == (out / "1/model.safetensors").read_bytes()

    picture = out / "x.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    with at(tracker.uri):
        served = mlflow.pyfunc.load_model("models:/faces@champion")
    encoded = base64.b64encode(picture.read_bytes()).decode()
    import pandas as pd

    answers = served.predict(pd.DataFrame({"uri": [str(picture), None], "image": [None, encoded]}))
    _, model, _ = load_frame_model(folder)
    frames = torch.from_numpy(read_sample(str(picture), 16, clips=False)[None])
    with torch.inference_mode():
        wanted = model(SPEC.pixels(frames)).double().softmax(1)[0].numpy()
    for row in answers["probabilities"]:
        np.testing.assert_allclose(row, wanted, atol=1e-6)
    assert answers["expression"][0] == SPEC.classes[int(wanted.argmax())]
