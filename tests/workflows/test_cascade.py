"""The cascade over prediction tables: scores, submission, windows, and what cannot be combined."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pthnet.cascade import ABAW
from pthnet.errors import ModelError
from tasks.frame_tables import write_table
from workflows.cascade import cascade
from workflows.frames_predict import nearest

LABELS = np.array([0, 0, 0, 1, 1, 1, 4, 4, 4, -1])


def frames(tmp_path, name, classes, labels, *, blind=(), wrong=()):
    """A network that is sure of `labels`, blind where there is no face, and wrong, without conviction, on some."""
    logits = 2.0 * np.eye(len(classes))[np.maximum(labels, 0)]
    for row in wrong:
        logits[row] = np.roll(logits[row], 1) * 0.1
    logits[list(blind)] = np.nan
    columns = {"video": ["v"] * len(labels), "frame": np.arange(1, len(labels) + 1), "label": LABELS}
    columns |= {f"logit_{c}": pa.array(logits[:, i], mask=np.isnan(logits[:, i])) for i, c in enumerate(classes)}
    write_table(str(tmp_path / f"{name}.parquet"), pa.table(columns))
    return str(tmp_path / f"{name}.parquet")


def three(tmp_path, **accidents):
    coarse = frames(tmp_path, "coarse", ABAW.coarse_names, ABAW.labels(LABELS, "coarse"), **accidents)
    negative = frames(tmp_path, "negative", ABAW.group_names, ABAW.labels(LABELS, "negative"), **accidents)
    return coarse, negative, frames(tmp_path, "flat", ABAW.classes, LABELS, **accidents)


def test_smoothing_mends_a_frame_and_the_report_says_what_beats_what(tmp_path, capsys):
    coarse, negative, flat = three(tmp_path, wrong=[4])
    cascade(coarse, negative, flat=flat, out=str(tmp_path / "out"))
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["rows"], report["scored"]) == (10, 9)
    found = {name: system["macro_f1"] for name, system in report["systems"].items()}
    assert found["cascade, argmax"] < 1
    assert found["cascade, argmax, smoothed"] == 1
    assert found["flat, smoothed"] == 1
    said = capsys.readouterr().out
    assert "does not beat the flat network" in said
    assert (tmp_path / "out/figures/confusion.png").stat().st_size > 1000


def test_frames_without_a_face_are_submitted_with_their_neighbours_class(tmp_path):
    coarse, negative, _ = three(tmp_path, blind=[1, 4])
    cascade(coarse, negative, out=str(tmp_path / "out"), w=1)
    lines = (tmp_path / "out/submission/videos/v.txt").read_text().split()
    assert lines == [",".join(ABAW.classes), *"0001114440"]


def test_a_stretch_without_faces_longer_than_the_window_takes_the_nearest_frame(tmp_path):
    coarse, negative, _ = three(tmp_path, blind=[4, 5, 6, 7])
    cascade(coarse, negative, out=str(tmp_path / "out"), w=1)
    assert pq.read_table(tmp_path / "out/predictions.parquet")["predicted"].to_pylist()[3:9] == [1, 1, 1, 4, 4, 4]


def test_smoothing_can_be_left_out(tmp_path):
    coarse, negative, _ = three(tmp_path, wrong=[4])
    cascade(coarse, negative, out=str(tmp_path / "out"), w=-1)
    systems = json.loads((tmp_path / "out/report.json").read_text())["systems"]
    assert systems["cascade, argmax"] == systems["cascade, argmax, smoothed"]


def windows(tmp_path, **columns):
    rng = np.random.default_rng(0)
    for name, classes in (("coarse", ("Calm", "Bad")), ("fine", ("Sad", "Angry"))):
        p = rng.dirichlet(np.ones(2), 20)
        table = {"clip": ["v"] * 12 + ["w"] * 8, "start": [*range(0, 48, 4), *range(0, 32, 4)], **columns}
        pq.write_table(
            pa.table({**table, **{f"p_{c}": p[:, i] for i, c in enumerate(classes)}}), tmp_path / f"{name}.parquet"
        )
    return [str(tmp_path / f"{name}.parquet") for name in ("coarse", "fine")]


def test_windows_of_two_pth_nets_are_combined(tmp_path, capsys):
    assert cascade(*windows(tmp_path), group="Bad", out=str(tmp_path / "out")) == 0
    found = pq.read_table(tmp_path / "out/predictions.parquet")
    assert found.column_names == ["video", "start", "label", "predicted", "p_Calm", "p_Sad", "p_Angry"]
    assert not (tmp_path / "out/submission").exists()
    assert "without labels nothing is scored" in capsys.readouterr().out


def test_labels_of_windows_need_a_meaning(tmp_path):
    tables = windows(tmp_path, label=[0] * 12 + [2] * 8)
    with pytest.raises(ModelError, match="say what they mean"):
        cascade(*tables, group="Bad", out=str(tmp_path / "out"))
    cascade(*tables, group="Bad", labels="Angry,Sad,Calm", out=str(tmp_path / "out"))
    labels = pq.read_table(tmp_path / "out/predictions.parquet")["label"].to_pylist()
    assert (labels[0], labels[-1]) == (2, 0)  # Angry and Calm, as the cascade counts
    with pytest.raises(ModelError, match="choose --labels"):
        cascade(*tables, group="Bad", labels="Angry,Sad", out=str(tmp_path / "out"))


def test_a_group_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="no class 'Negative'"):
        cascade(*windows(tmp_path), out=str(tmp_path / "out"))


def test_the_nearest_seen_frame_is_of_the_same_video():
    videos = np.array(list("aaaaabbb"))
    seen = np.array([0, 1, 0, 0, 1, 0, 0, 0], bool)
    assert nearest(videos, seen).tolist() == [1, 1, 1, 4, 4, 5, 6, 7]
