"""The published lists become one table, whatever machine they were written on."""

import numpy as np
import pytest

from pthnet.emotions import label_map
from storage.errors import StorageError
from tasks.frame_lists import frames_of_videos, is_clips, read_frames, relocate

DFEW, ABAW = label_map("dfew"), label_map("affwild2")
HEADER = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_clips_from_a_windows_machine_are_found_below_the_root(tmp_path):
    touch(tmp_path / "faces/clip_224x224/00001/1.jpg")
    (tmp_path / "train.txt").write_text(
        "D:\\data\\DFEW\\clip_224x224\\00001 16 0\r\nD:\\data\\DFEW\\clip_224x224\\00 002 31 6\r\n"
    )
    table = read_frames(str(tmp_path / "train.txt"), root=str(tmp_path / "faces"), labels=DFEW)
    assert is_clips(table)
    assert table["uri"].to_pylist() == [f"{tmp_path}/faces/clip_224x224/{name}" for name in ("00001", "00 002")]
    assert table["frames"].to_pylist() == [16, 31]
    assert table["label"].to_pylist() == [0, 6]


def test_images_from_a_csv_with_labels_counted_from_one(tmp_path):
    touch(tmp_path / "img/train_00001_aligned.jpg")
    (tmp_path / "train.csv").write_text("filePath,expression\ntrain_00001_aligned.jpg,5\ntrain_2.jpg,-1\n")
    table = read_frames(str(tmp_path / "train.csv"), root=str(tmp_path / "img"), labels=label_map("rafdb"))
    assert not is_clips(table)
    assert table["label"].to_pylist() == [4, -1]
    assert table["frames"].to_pylist() == [1, 1]


def test_words_are_labels_too(tmp_path):
    touch(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("filePath,expression\na.png,happy\na.png,Sadness\n")
    table = read_frames(str(tmp_path / "l.csv"), root=str(tmp_path), labels=label_map("afew"))
    assert table["label"].to_pylist() == [3, 5]


def expr(tmp_path, lines, faces, header=HEADER):
    (tmp_path / "EXPR").mkdir(exist_ok=True)
    (tmp_path / "EXPR/12-24.txt").write_text("\n".join([header, *map(str, lines)]) + "\n")
    for number in faces:
        touch(tmp_path / f"faces/12-24/{number:05d}.jpg")
    return str(tmp_path / "EXPR"), str(tmp_path / "faces")


@pytest.mark.parametrize(("first", "names"), [(0, ["00000", "00001", "00002"]), (1, ["00001", "00002", "00003"])])
def test_both_conventions_of_the_first_frame(tmp_path, first, names):
    annotations, root = expr(tmp_path, [0, 4, -1], [0, 1, 3])
    table = read_frames(annotations, root=root, labels=ABAW, first_frame=first)
    assert [uri.split("/")[-1].split(".")[0] for uri in table["uri"].to_pylist()] == names
    assert table["label"].to_pylist() == [0, 4, -1]
    assert table["present"].to_pylist() == ([True, True, False] if first == 0 else [True, False, True])
    assert table["video"].to_pylist() == ["12-24"] * 3


def test_one_annotation_file_is_enough(tmp_path):
    annotations, root = expr(tmp_path, [7], [1])
    assert read_frames(f"{annotations}/12-24.txt", root=root, labels=ABAW)["label"].to_pylist() == [7]


def test_a_header_in_another_order_is_obeyed(tmp_path):
    shuffled = "Happiness,Neutral,Anger,Disgust,Fear,Sadness,Surprise,Other"
    annotations, root = expr(tmp_path, [0, 1, -1], [1], shuffled)
    assert read_frames(annotations, root=root, labels=ABAW)["label"].to_pylist() == [4, 0, -1]


def test_videos_without_annotations_run_to_their_last_face(tmp_path):
    for number in (1, 2, 5):
        touch(tmp_path / f"v/{number:05d}.jpg")
    touch(tmp_path / "v/notes.txt")
    table = frames_of_videos(str(tmp_path))
    assert table["present"].to_pylist() == [True, True, False, False, True]
    assert set(table["label"].to_pylist()) == {-1}


@pytest.mark.parametrize(
    ("lines", "header", "said"),
    [
        ([0, 8], HEADER, "8 classes"),
        ([0, "x"], HEADER, "one integer per frame"),
        ([0], HEADER + ",Contempt", "choose a label map"),
    ],
)
def test_broken_annotations_are_named(tmp_path, lines, header, said):
    annotations, root = expr(tmp_path, lines, [1], header)
    with pytest.raises(StorageError, match=said):
        read_frames(annotations, root=root, labels=ABAW)


def test_what_cannot_be_found_is_named(tmp_path):
    annotations, _ = expr(tmp_path, [0], [])
    with pytest.raises(StorageError, match="no such folder of face images"):
        read_frames(annotations, root=str(tmp_path / "elsewhere"), labels=ABAW)
    with pytest.raises(StorageError, match="first_frame is 0 or 1"):
        read_frames(annotations, root=str(tmp_path), labels=ABAW, first_frame=2)
    with pytest.raises(StorageError, match="nor any ending"):
        relocate(["/a/b"], str(tmp_path))
    with pytest.raises(StorageError, match="no such list"):
        read_frames(str(tmp_path / "gone.txt"), labels=ABAW)


def test_a_list_of_the_wrong_kind_or_with_unknown_labels_is_refused(tmp_path):
    (tmp_path / "l.txt").write_text("a 3 9\n")
    with pytest.raises(StorageError, match="line 1: label '9'"):
        read_frames(str(tmp_path / "l.txt"), labels=DFEW)
    (tmp_path / "l.txt").write_text("a 3 1\n")
    with pytest.raises(StorageError, match="lists clips, this model takes images"):
        read_frames(str(tmp_path / "l.txt"), labels=DFEW, sample="image")
    (tmp_path / "l.csv").write_text("filePath,expression\na.jpg,1\nb,1\n")
    with pytest.raises(StorageError, match="mixes"):
        read_frames(str(tmp_path / "l.csv"), labels=DFEW)


def test_labels_come_as_int32(tmp_path):
    annotations, root = expr(tmp_path, [0], [1])
    assert read_frames(annotations, root=root, labels=ABAW)["label"].to_numpy().dtype == np.int32
