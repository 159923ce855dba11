"""Flow images and labels are read from the published layouts, and what is wrong with them is listed at once."""

import csv
import shutil

import cv2
import numpy as np
import pytest

from pthnet.flow import FALLBACK_LANDMARKS, four_parts
from storage.errors import StorageError
from tasks.loso_data import (
    Fold,
    MicroSet,
    leave_one_out,
    network_input,
    read_landmarks,
    read_published,
    read_subject_folders,
    refuse_leakage,
)
from tasks.micro_list import read_micro_list
from workflows.synth_micro import synth_micro


@pytest.fixture(scope="module")
def composite(tmp_path_factory):
    directory = tmp_path_factory.mktemp("micro")
    synth_micro(directory, subjects=2)
    return directory


@pytest.fixture
def copied(composite, tmp_path):
    shutil.copytree(composite / "flow", tmp_path / "flow")
    shutil.copy(composite / "combined.csv", tmp_path)
    return tmp_path


def rows_of(directory):
    with open(directory / "combined.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def test_published_names_with_their_space_are_read_in_network_order(composite):
    found = read_published(composite / "flow", composite / "combined.csv")
    rows = rows_of(composite)
    assert found.labels.tolist() == [int(row["label"]) for row in rows]
    assert sorted(set(found.subjects)) == [
        "CASME II/sub01", "CASME II/sub02", "SAMM/001", "SAMM/002", "SMIC/s01", "SMIC/s02",
    ]  # fmt: skip
    path = composite / "flow" / f"{rows[0]['sub']}_{rows[0]['filename_o']} .png"
    blue, green, red = cv2.split(cv2.imread(str(path)))
    for channel, expected in enumerate((blue, green, red)):
        assert np.array_equal(found.images[0, ..., channel], expected), "strain, v, u are a PNG's blue, green, red"
    images = network_input(found.images)
    assert images.shape == (len(rows), 3, 28, 28)
    assert np.array_equal(images[0].transpose(1, 2, 0), four_parts(found.images[0]))
    assert np.array_equal(network_input(found.images, crop=False)[0].transpose(1, 2, 0), found.images[0])


def test_every_kind_of_unusable_image_is_listed_in_one_error(copied):
    names = [row["sub"] + "_" + row["filename_o"] for row in rows_of(copied)]
    at = [copied / "flow" / f"{name} .png" for name in names[:4]]
    at[0].unlink()
    at[1].write_bytes(b"not a picture")
    cv2.imwrite(str(at[2]), np.zeros((32, 28, 3), np.uint8))
    shutil.copy(at[3], copied / "flow" / f"{names[3]}.png")
    with pytest.raises(StorageError) as error:
        read_published(copied / "flow", copied / "combined.csv")
    text = str(error.value)
    assert f"missing (1): {names[0]} .png" in text
    assert f"unreadable (1): {names[1]} .png" in text
    assert f"not 28 x 28 (1): {names[2]} .png (28 x 32)" in text
    assert f"there twice, with and without the space (1): {names[3]}" in text


def test_a_name_without_the_space_is_read_too(copied):
    for path in (copied / "flow").iterdir():
        path.rename(path.with_name(path.name.replace(" .png", ".png")))
    assert len(read_published(copied / "flow", copied / "combined.csv").labels)


def test_wrong_labels_missing_columns_and_repeated_samples_are_refused(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("dataset,sub,filename_o\na,b,c\n")
    with pytest.raises(StorageError, match="lacks the columns label"):
        read_micro_list(path)
    path.write_text("dataset,sub,filename_o,label\nsmic,s1,a,Positive\nsmic,s1,a,1\nsmic,s1,b,7\nsmic,s1,,0\n")
    with pytest.raises(StorageError) as error:
        read_micro_list(path)
    assert "line 4: '7'" in str(error.value)
    assert "is empty (1): line 5" in str(error.value)
    assert "listed more than once" in str(error.value)
    path.write_text("dataset,sub,filename_o,label\nsmic,s1,a,Positive\nsmic,s1,b,2.0\n")
    assert [sample.label for sample in read_micro_list(path)] == [1, 2]
    with pytest.raises(StorageError, match="cannot be read as a CSV"):
        read_micro_list(tmp_path / "nowhere.csv")


def test_each_fold_leaves_one_subject_out_and_tests_every_sample_once():
    subjects = np.array(["a", "b", "a", "c", "b"])
    folds = leave_one_out(subjects)
    assert [fold.subject for fold in folds] == ["a", "b", "c"]
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(5))
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert len(fold.train) + len(fold.test) == 5
    refuse_leakage(folds, subjects)
    with pytest.raises(StorageError, match="at least two subjects"):
        leave_one_out(np.array(["a", "a"]))


def test_subject_leakage_is_refused():
    subjects = np.array(["a", "a", "b"])
    leaking = Fold(0, "a", np.array([0, 2]), np.array([1]))
    with pytest.raises(StorageError, match="fold 1: a"):
        refuse_leakage([leaking], subjects)
    names, same = np.array(["x", "y", "z"]), np.zeros((3, 28, 28, 3), np.uint8)
    samples = MicroSet(names, np.array(["set"] * 3), subjects, np.zeros(3, np.int64), same)
    with pytest.raises(StorageError, match=r"one image under two subjects \(1\): x of a and z of b"):
        refuse_leakage([], subjects, samples)


@pytest.fixture
def folders(composite, tmp_path):
    rows = rows_of(composite)
    for home in {row["sub"] for row in rows}:
        for row in rows:
            part = "u_test" if row["sub"] == home else "u_train"
            target = tmp_path / home / part / row["label"]
            target.mkdir(parents=True, exist_ok=True)
            name = f"{row['sub']}_{row['filename_o']} .png"
            shutil.copy(composite / "flow" / name, target / name)
    return tmp_path


def test_folders_per_subject_hold_the_same_samples_as_the_flat_layout(composite, folders):
    flat, nested = read_published(composite / "flow", composite / "combined.csv"), read_subject_folders(folders)
    flat_order, nested_order = np.argsort(flat.names), np.argsort(nested.names)
    for field in ("names", "subjects", "datasets", "labels", "images"):
        assert np.array_equal(getattr(flat, field)[flat_order], getattr(nested, field)[nested_order]), field


def test_folders_that_leak_or_disagree_are_refused(folders):
    own = next((folders / "sub01" / "u_test").glob("*/*.png"))
    shutil.copy(own, folders / "sub01" / "u_train" / own.parent.name / own.name)
    other = next((folders / "sub02" / "u_train" / "0").glob("*.png"))
    other.rename(folders / "sub02" / "u_train" / "1" / other.name)
    next((folders / "s01" / "u_train" / "0").glob("*.png")).unlink()
    with pytest.raises(StorageError) as error:
        read_subject_folders(folders)
    assert f"subject leakage: own samples in u_train (1): sub01: {own.stem.strip()}" in str(error.value)
    assert f"another label in u_train than in u_test (1): sub02: {other.stem.strip()}" in str(error.value)
    assert "missing from u_train (1): s01:" in str(error.value)
    with pytest.raises(StorageError, match="u_test"):
        read_subject_folders(folders / "nowhere")


def test_landmarks_are_joined_by_sample_with_the_fallback_for_faces_not_found(composite, tmp_path):
    found = read_published(composite / "flow", composite / "combined.csv")
    lines = (composite / "landmarks.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(lines[:3]))
    points = read_landmarks(tmp_path / "some.csv", found.names.tolist())
    assert points.shape == (len(found.names), 5, 2)
    assert not np.allclose(points[0], FALLBACK_LANDMARKS)
    assert np.array_equal(points[2], FALLBACK_LANDMARKS)
    (tmp_path / "bad.csv").write_text(lines[0] + "\n" + lines[1].replace("0.", "x."))
    with pytest.raises(StorageError, match=r"bad\.csv"):
        read_landmarks(tmp_path / "bad.csv", ["nobody"])
