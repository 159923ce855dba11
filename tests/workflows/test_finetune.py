"""Fine-tuning, prediction and the cascade end to end on Ray, with small networks on drawn faces."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from cluster.connect import connect
from pthnet.cascade import ABAW
from pthnet.emotions import label_map
from pthnet.errors import ModelError
from pthnet.frame_weights import load_frame_model
from storage.errors import StorageError
from tasks.finetune_state import FinetuneState
from tasks.frame_lists import read_frames
from tasks.frame_tables import prediction_table, write_table
from workflows.cascade import cascade
from workflows.finetune import finetune
from workflows.frames_predict import frames_predict
from workflows.synth_frames import synth_frames

SIZES = {"image_size": 56, "width": 12, "depths": "1,1"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    synth_frames(folder, videos=6, frames=50, clips=28, images=28, size=32)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ours = not ray.is_initialized()
    connect(num_cpus=2)
    yield
    if ours:
        ray.shutdown()


def kept(run):
    """Folders of a run's checkpoints, the newest last."""
    return sorted(path.parent for path in run.glob("checkpoint_*/finetune.pt"))


def videos(drawn, out, head, **options):
    given = {"list_train": str(drawn / "EXPR/train"), "list_val": str(drawn / "EXPR/val"), "root": str(drawn / "faces")}
    given |= {"model": "swin_s", "head": head, "epochs": 1, "batch_size": 16, "out": str(out), "track": False}
    return finetune(**{**given, **SIZES, **options})


def test_coarse_and_negative_are_trained_combined_and_submitted(drawn, tmp_path, capsys):
    assert videos(drawn, tmp_path, "coarse", workers=2, track=True) == 0  # DDP, no CPU to spare
    spec, _, facts = load_frame_model(tmp_path / "swin_s-coarse/model")
    assert spec.classes == ("Neutral", "Happiness", "Surprise", "Other", "Negative")
    assert facts["epoch"] == 1
    assert (tmp_path / "mlflow.db").exists()

    coarse, negative = str(tmp_path / "swin_s-coarse/predictions.parquet"), str(tmp_path / "negative.parquet")
    rows = read_frames(str(drawn / "EXPR/val"), root=str(drawn / "faces"), labels=label_map("affwild2"))
    outputs = np.random.default_rng(0).normal(size=(len(rows), 4))
    outputs[~rows["present"].to_numpy()] = np.nan
    write_table(negative, prediction_table(rows, outputs, ABAW.group_names))
    assert cascade(coarse, negative, out=str(tmp_path / "cascade")) == 0
    assert "macro F1" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "cascade/predictions.parquet")
    assert len(found) == 50
    p = np.stack([found[name].to_numpy() for name in found.column_names if name.startswith("p_")], axis=1)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    report = json.loads((tmp_path / "cascade/report.json").read_text())
    assert set(report["systems"]) == {
        "cascade, argmax", "cascade, argmax, smoothed", "cascade, probability, smoothed",
    }  # fmt: skip
    lines = (tmp_path / "cascade/submission/predictions.txt").read_text().splitlines()
    assert lines[0] == "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
    assert len(lines) == 51  # frames without a face are predicted too

    # the same weights on the same frames, now as a prediction from a bare weight file: equal logits
    out = str(tmp_path / "again.parquet")
    weights = tmp_path / "swin_s-coarse/model/model.safetensors"
    where = {"list_test": str(drawn / "EXPR/val"), "root": str(drawn / "faces"), "out": out}
    frames_predict("swin_s", weights=weights, head="coarse", submission=str(tmp_path / "sub"), **where, **SIZES)
    one, two = pq.read_table(out), pq.read_table(coarse)
    for name in two.column_names:
        if name.startswith("logit_"):
            np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), atol=1e-4)
        else:
            assert one[name].equals(two[name])
    assert "labelled samples" in capsys.readouterr().out.replace("\n", " ")
    assert len((tmp_path / "sub/predictions.txt").read_text().splitlines()) == 51


def test_clips_are_trained_resumed_and_read_back(drawn, tmp_path, capsys):
    given = {
        "list_train": str(drawn / "lists/clips_train.txt"), "list_val": str(drawn / "lists/clips_test.txt"),
        "root": str(drawn / "clips"), "model": "r3d_18", "gamma": 10.0, "batch_size": 8, "out": str(tmp_path),
        "image_size": 16, "width": 4, "depths": "1,1", "track": False,
    }  # fmt: skip
    finetune(epochs=1, **given)
    finetune(epochs=2, **given)
    checkpoints = kept(tmp_path / "r3d_18-all")
    state = FinetuneState.load(checkpoints[-1])
    assert [record["epoch"] for record in state.history] == [1, 2]
    assert all(record["ecstfl"] > 0 for record in state.history)
    assert "epoch 1/2" not in capsys.readouterr().out  # the second command did the second epoch only
    finetune(epochs=2, **given)
    assert kept(tmp_path / "r3d_18-all") == checkpoints
    with pytest.raises(ModelError, match=r"other settings \(lr\)"):
        finetune(epochs=2, lr=0.5, **given)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"labels": "dfew"}, StorageError, "choose a label map"),
        ({"augment": "mild"}, ModelError, "known: ec-stfl-video"),
        ({"model": "r3d_18", "labels": "affwild2", "head": "all"}, StorageError, "this model takes clips"),
        ({"list_val": "/nowhere.txt"}, StorageError, "no such list"),
        ({"batch_size": 4096}, ModelError, "smaller batch"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(drawn, tmp_path, options, error, said):
    options = {"head": "all", **options}
    with pytest.raises(error, match=said):
        videos(drawn, tmp_path, options.pop("head"), **options)
