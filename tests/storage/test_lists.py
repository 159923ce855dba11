import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import StorageError
from storage.lists import check_labels, clip_id_of, list_digest, read_list, read_rows, write_list


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows(table):
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("path", "clip_id"),
    [
        ("get_features/FERV39k/th14_vit_g_16_16/Crime/Angry/0063.npy", "Crime/Angry/0063"),
        (r"D:\data\get_features\FERV39k\th14_vit_g_16_4_face_rv\Crime\Angry\0063.npy", "Crime/Angry/0063"),
        ("/home/somebody/get_features/DFEW/00012.npy", "00012"),
        ("./Crime/Angry/0063/", "Crime/Angry/0063"),
        ("with space/a b.mp4", "with space/a b"),
        ("a.b/c.d", "a.b/c.d"),
        ("Überraschung/é.jpg", "Überraschung/é"),
    ],
)
def test_the_clip_id_of_a_path(path, clip_id):
    assert clip_id_of(path) == clip_id


def test_a_prefix_can_be_stripped():
    assert clip_id_of("/data/FERV39k/frames/Crime/Angry/0063", "/data/FERV39k/frames/") == "Crime/Angry/0063"
    assert clip_id_of("data/framesets/0063", "data/frames") == "data/framesets/0063"
    assert clip_id_of("data/a/b.mp4", "s3://bucket/data") == "a/b"


def test_a_text_list_of_features_counts_windows_of_its_stride(tmp_path):
    folder = "get_features/D/th14_vit_g_16_16"
    path = put(
        tmp_path / "l.txt",
        f"{folder}/a b/1.npy 2 0\n\n{folder}/c.npy 5 6\n",
    )
    table = read_list(path)
    assert rows(table) == [("a b/1", 0, 2), ("c", 6, 5)]
    assert table.schema.metadata == {b"unit": b"windows", b"stride": b"16"}
    assert [field.type for field in table.schema] == [pa.string(), pa.int32(), pa.int32()]


def test_a_text_list_of_folders_counts_frames(tmp_path):
    table = read_list(put(tmp_path / "l.txt", "\ufeffCrime/Angry/0063 28 2\r\n"))
    assert rows(table) == [("Crime/Angry/0063", 2, 28)]
    assert table.schema.metadata[b"unit"] == b"frames"


def test_an_image_csv_and_a_csv_with_named_classes_and_splits(tmp_path):
    images = put(tmp_path / "i.csv", 'filePath,expression\n"train/a, b.jpg",3\ntrain/c.png,0\n')
    assert rows(read_list(images)) == [("train/a, b", 3, None), ("train/c", 0, None)]
    named = put(tmp_path / "n.csv", "clip_id,uri,label,split\nx,s3://b/k.mp4,Happy,train\ny,y.mp4,sad,test\n")
    assert rows(read_list(named, split="test", class_names=["Happy", "Sad"])) == [("y", 1, None)]
    with pytest.raises(StorageError, match="no split 'val'; present: test, train"):
        read_list(named, split="val")


def test_a_parquet_list(tmp_path):
    pq.write_table(pa.table({"clip_id": ["a", "b"], "label": [1, 0], "more": [None, 1]}), tmp_path / "l.parquet")
    assert rows(read_list(str(tmp_path / "l.parquet"))) == [("a", 1, None), ("b", 0, None)]


@pytest.mark.parametrize("name", ["l.csv", "l.parquet", "l.txt"])
def test_what_is_written_reads_back_the_same(tmp_path, name):
    kept = read_list(put(tmp_path / "in.txt", "a b/1 28 0\nc 31 6\n"))
    write_list(kept, str(tmp_path / name))
    assert rows(read_list(str(tmp_path / name))) == rows(kept)
    assert list_digest(read_list(str(tmp_path / name))) == list_digest(kept)


def test_the_digest_depends_on_clips_and_labels_not_on_order(tmp_path):
    one = read_list(put(tmp_path / "1.txt", "a 1 0\nb 1 1\n"))
    two = read_list(put(tmp_path / "2.txt", "b 9 1\na 9 0\n"))
    three = read_list(put(tmp_path / "3.txt", "a 1 0\nb 1 2\n"))
    assert list_digest(one) == list_digest(two) != list_digest(three)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a 1 0\nno numbers here\n", "line 2: expected '<path> <count> <label>'"),
        ("l.txt", "a 1 0\na 1 1\n", "line 2: 'a' has label 1, but 0 in line 1"),
        ("l.txt", "\n", "holds no rows"),
        ("l.csv", "what,ever\n1,2\n", "expected a CSV header"),
        ("l.csv", "uri,label\na,b,0\n", "line 2: 3 fields under 2 names"),
        ("l.csv", "uri,label\na.mp4,Happy\n", "label 'Happy' of 'a'; expected a number"),
        ("l.csv", "uri,label,count\na.mp4,1,x\n", "count is a whole number"),
        ("l.csv", "uri,label\n,1\n", "neither clip_id nor uri"),
        ("l.parquet", "text", "is no Parquet file"),
    ],
)
def test_a_list_that_cannot_be_read_names_the_place(tmp_path, name, text, message):
    with pytest.raises(StorageError, match=message):
        read_list(put(tmp_path / name, text))


def test_a_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(StorageError, match="no such list"):
        read_rows(str(tmp_path / "none.txt"))
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError, match="not UTF-8"):
        read_rows(str(tmp_path / "l.txt"))


def test_a_label_outside_the_classes_is_named(tmp_path):
    table = read_list(put(tmp_path / "l.txt", "a 1 0\nb 1 7\n"))
    check_labels(table, 8)
    with pytest.raises(StorageError, match=r"l.txt, row 2: clip 'b' has label 7; expected 0 to 1 \(Happy, Sad\)"):
        check_labels(table, 2, ["Happy", "Sad"], path="l.txt")
