"""Prediction tables are read however they were written, and submissions are what the challenge takes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pthnet.cascade import smooth
from storage.errors import StorageError
from tasks.frame_tables import read_outputs, same_rows, write_submission, write_table


def frames_table(**changes):
    columns = {
        "video": ["b", "a", "a"],
        "frame": [1, 2, 1],
        "label": [3, -1, 0],
        "logit_X": [1.0, None, 3.0],
        "logit_Y": [0.5, None, 1.0],
    }
    return pa.table({**columns, **changes})


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_frames_come_sorted_with_their_gaps(tmp_path, suffix):
    uri = str(tmp_path / f"p.{suffix}")
    write_table(uri, frames_table())
    found = read_outputs(uri)
    assert found.classes == ("X", "Y")
    assert found.videos.tolist() == ["a", "a", "b"]
    assert found.frames.tolist() == [1, 2, 1]
    assert found.labels.tolist() == [0, -1, 3]
    assert found.present.tolist() == [True, False, True]
    assert found.logits[0].tolist() == [3.0, 1.0]
    assert found.is_frames


def test_window_probabilities_smooth_like_the_logits_they_came_from(tmp_path):
    logits = np.random.default_rng(0).normal(size=(6, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = pa.table({"clip": ["v"] * 6, "start": np.arange(6) * 4, **{f"p_{c}": p[:, i] for i, c in enumerate("abc")}})
    pq.write_table(table, tmp_path / "w.parquet")
    found = read_outputs(str(tmp_path / "w.parquet"))
    assert not found.is_frames
    assert (found.labels == -1).all()

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    np.testing.assert_allclose(softmax(smooth(found.logits)), softmax(smooth(logits)), rtol=1e-9)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"video": ["a"], "logit_X": [1.0]}), "expected a video"),
        (pa.table({"video": ["a"], "frame": [1]}), "logit_<class>"),
        (frames_table(video=["a", "a", "a"], frame=[1, 1, 2]), "two rows for a at 1"),
    ],
)
def test_tables_that_lack_something_are_refused(tmp_path, table, said):
    write_table(str(tmp_path / "p.parquet"), table)
    with pytest.raises(StorageError, match=said):
        read_outputs(str(tmp_path / "p.parquet"))


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"no")
    for name in ("p.parquet", "gone.parquet"):
        with pytest.raises(StorageError):
            read_outputs(str(tmp_path / name))


def test_networks_that_saw_different_frames_are_not_combined(tmp_path):
    for name, frames in (("one", [1, 2, 1]), ("two", [1, 3, 1])):
        write_table(str(tmp_path / f"{name}.parquet"), frames_table(frame=frames))
    one, two = (read_outputs(str(tmp_path / f"{name}.parquet")) for name in ("one", "two"))
    same_rows(one, one)
    with pytest.raises(StorageError, match="the first: a at 2"):
        same_rows(one, two)


def test_both_forms_of_the_challenges_submission(tmp_path):
    videos, frames = np.array(["a", "a", "b"]), np.array([1, 2, 1])
    written = write_submission(str(tmp_path), ("Neutral", "Anger"), videos, frames, np.array([0, 1, 1]))
    assert len(written) == 3
    assert (tmp_path / "videos/a.txt").read_text() == "Neutral,Anger\n0\n1\n"
    assert (tmp_path / "videos/b.txt").read_text() == "Neutral,Anger\n1\n"
    assert (tmp_path / "predictions.txt").read_text().splitlines() == [
        "image_location,Neutral,Anger", "a/00001.jpg,0", "a/00002.jpg,1", "b/00001.jpg,1",
    ]  # fmt: skip
