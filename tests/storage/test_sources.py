import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files
from storage.clips import frame_names
from storage.errors import StorageError
from storage.sources import CLIPS, list_clips


def put(root, *paths, body=b"x"):
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)


def ids(*args, **kwargs):
    return list_clips(*args, **kwargs)["clip_id"].to_pylist()


def by_id(*args, **kwargs):
    return {row["clip_id"]: row for row in list_clips(*args, **kwargs).to_pylist()}


def test_a_folder_is_searched_for_videos_and_folders_of_frames(tmp_path):
    put(tmp_path, "Crime/Angry/0063.mp4", "b.MOV", "frames/001/1.jpg", "frames/001/2.jpg", ".hidden.mp4", ".h/c.mp4")
    put(tmp_path, "notes.txt", "b.jpg", "ü é/ñ o.webm")
    clips = by_id([str(tmp_path)])
    assert {name: clip["kind"] for name, clip in clips.items()} == {
        "Crime/Angry/0063": "video",
        "b": "video",
        "frames/001": "frames",
        "ü é/ñ o": "video",
    }
    assert list_clips([str(tmp_path)]).schema == CLIPS
    assert clips["frames/001"]["size"] == 2
    assert clips["b"]["uri"] == str(tmp_path / "b.MOV")


def test_a_folder_that_is_itself_a_clip_is_named_after_itself(tmp_path):
    put(tmp_path, "0063/1.jpg")
    assert ids([str(tmp_path / "0063")]) == ["0063"]


def test_files_and_globs_are_named_relative_to_where_the_search_begins(tmp_path):
    put(tmp_path, "v/a/1.mp4", "v/b/1.mp4", "v/b/poster.jpg", "v/f/1.png")
    assert ids([str(tmp_path / "v/a/1.mp4")]) == ["1"]
    assert ids([str(tmp_path / "v/*/*.mp4")]) == ["a/1", "b/1"]
    assert ids([str(tmp_path / "v/**/*.mp4")]) == ["a/1", "b/1"]
    assert ids([str(tmp_path / "v/*")]) == ["a/1", "b/1", "f"]
    assert by_id([str(tmp_path / "v/f/*.png")])["1"]["kind"] == "image"
    assert ids([str(tmp_path / "v/a"), str(tmp_path / "v/b")], root=str(tmp_path)) == ["v/a/1", "v/b/1"]


def test_two_clips_of_one_name_are_refused_and_one_reached_twice_is_one(tmp_path):
    put(tmp_path, "a/1.mp4", "b/1.mp4", "c/2.mp4", "c/2.mov")
    with pytest.raises(StorageError, match=r"two clips would be named '1': .*a/1.mp4 and .*b/1.mp4"):
        list_clips([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(StorageError, match="two clips would be named '2'"):
        list_clips([str(tmp_path / "c")])
    assert ids([str(tmp_path / "a"), str(tmp_path / "a/1.mp4"), str(tmp_path / "a/*.mp4")]) == ["1"]


def test_symbolic_links_are_followed_without_end_of_loops(tmp_path):
    put(tmp_path, "pool/1.mp4")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/linked.mp4").symlink_to(tmp_path / "pool/1.mp4")
    (tmp_path / "pool/back").symlink_to(tmp_path)
    (tmp_path / "set/broken.mp4").symlink_to(tmp_path / "none.mp4")
    assert ids([str(tmp_path / "set")]) == ["linked"]
    assert "pool/1" in ids([str(tmp_path)])
    # The same file through a link, under the same name, is one clip.
    (tmp_path / "copy").symlink_to(tmp_path / "pool")
    assert "1" in ids([str(tmp_path / "pool"), str(tmp_path / "copy")])


def test_content_changes_with_the_bytes(tmp_path):
    put(tmp_path, "a.mp4", "f/1.jpg")
    before = by_id([str(tmp_path)])
    assert by_id([str(tmp_path)]) == before
    hashed = by_id([str(tmp_path)], fingerprint="sha256")
    assert hashed["a"]["content"].startswith("sha256:")
    os.utime(tmp_path / "a.mp4", ns=(1, 1))
    os.utime(tmp_path / "f/1.jpg", ns=(1, 1))
    touched = by_id([str(tmp_path)])
    assert touched["a"]["content"] != before["a"]["content"]
    assert touched["f"]["content"] != before["f"]["content"]
    assert by_id([str(tmp_path)], fingerprint="sha256") == hashed
    put(tmp_path, "f/2.jpg", body=b"yy")
    assert by_id([str(tmp_path)], fingerprint="sha256")["f"]["content"] != hashed["f"]["content"]


def test_frames_are_in_natural_order():
    assert frame_names(["10.jpg", "9.jpg", ".x.jpg", "a.txt", "1.jpg"]) == ["1.jpg", "9.jpg", "10.jpg"]
    assert frame_names(["f10_2.png", "f2_10.png", "f2_9.png"]) == ["f2_9.png", "f2_10.png", "f10_2.png"]


def test_a_list_names_clips_below_its_root(tmp_path):
    put(tmp_path, "data/Crime/Angry/0063/1.jpg", "data/v/b c.mp4", "data/img/x.png", "data/img/y.png")
    (tmp_path / "l.txt").write_text("Crime/Angry/0063 1 2\nget_features/D/th14_vit_g_16_4/v/b c.npy 2 0\n")
    (tmp_path / "l.csv").write_text("filePath,expression\nimg/y.png,1\n")
    root = str(tmp_path / "data")
    got = by_id([str(tmp_path / "l.txt"), f"list:{tmp_path / 'l.csv'}"], root=root)
    assert {name: clip["kind"] for name, clip in got.items()} == {
        "Crime/Angry/0063": "frames",
        "v/b c": "video",
        "img/y": "image",
    }
    # The same clip has the same id and content through its folder.
    assert by_id([root])["v/b c"] == got["v/b c"]


def test_a_list_may_give_ids_and_absolute_places(tmp_path):
    put(tmp_path, "far/1.mp4", "near/2.mp4", "far/f/1.jpg")
    table = {"clip_id": ["one", "two", "f"], "uri": [str(tmp_path / "far/1.mp4"), "2.mp4", str(tmp_path / "far/f")]}
    pq.write_table(pa.table({**table, "label": [0, 1, 2]}), tmp_path / "near/l.parquet")
    got = by_id([str(tmp_path / "near/l.parquet")])
    assert {name: (clip["kind"], clip["uri"].rpartition("/")[2]) for name, clip in got.items()} == {
        "one": ("video", "1.mp4"),
        "two": ("video", "2.mp4"),
        "f": ("frames", "f"),
    }


def test_clips_that_a_list_names_and_are_not_there_are_counted(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "l.txt").write_text("a 1 0\n" + "".join(f"gone{i} 1 0\n" for i in range(8)))
    with pytest.raises(StorageError, match=r"names 8 of 9 clips that are not below .*'gone0'.*, \.\.\.;"):
        list_clips([str(tmp_path / "l.txt")])


@pytest.mark.parametrize("name", ["none", "none.mp4", "*.mp4", "empty"])
def test_a_source_without_clips_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"no clips found|no such file"):
        list_clips([str(tmp_path / name)])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "shut/a.mp4")
    plain = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)  # an administrator may read every folder
    with pytest.raises(StorageError, match=r"cannot read the folder .*shut: permission denied"):
        list_clips([str(tmp_path)])


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(StorageError, match="fingerprint"):
        list_clips([str(tmp_path)], fingerprint="md5")
    with pytest.raises(StorageError, match="no source"):
        list_clips([])
    put(tmp_path, "a/1.mp4", "b/2.mp4")
    with pytest.raises(StorageError, match="does not lie below the root"):
        list_clips([str(tmp_path / "a")], root=str(tmp_path / "b"))


def test_prefixes_objects_and_globs_in_s3(s3):
    bucket = s3.bucket()
    for key in ("set/a/1.mp4", "set/é b/2.webm", "set/f/1.jpg", "set/f/2.jpg", "set/.h/3.mp4", "other/9.mp4"):
        s3.put(bucket, key, key.encode())
    got = by_id([f"s3://{bucket}/set/"])
    assert {name: clip["kind"] for name, clip in got.items()} == {"a/1": "video", "f": "frames", "é b/2": "video"}
    assert got["a/1"]["content"].endswith("-11")
    assert got["f"]["uri"] == f"s3://{bucket}/set/f"
    assert ids([f"s3://{bucket}/set/f"]) == ["f"]
    assert ids([f"s3://{bucket}/set/a/1.mp4"]) == ["1"]
    assert ids([f"s3://{bucket}/*/*/*.mp4"]) == ["set/a/1"]
    s3.put(bucket, "set/a/1.mp4", b"other bytes")
    assert by_id([f"s3://{bucket}/set"])["a/1"]["content"] != got["a/1"]["content"]
    with pytest.raises(StorageError, match="no clips found"):
        list_clips([f"s3://{bucket}/nothing"])


def test_a_list_of_clips_in_s3(moto):
    bucket = moto.bucket()
    moto.put(bucket, "set/a/1.mp4", b"1")
    moto.put(bucket, "else/2.mp4", b"2")
    moto.put(bucket, "set/l.csv", f"uri,label\na/1.mp4,0\ns3://{bucket}/else/2.mp4,1\n".encode())
    assert ids([f"s3://{bucket}/set/l.csv"]) == ["a/1", "else/2"]


def test_more_objects_than_one_page(moto, monkeypatch):
    monkeypatch.setattr(files, "PAGE", 2)
    bucket = moto.bucket()
    for index in range(5):
        moto.put(bucket, f"p/{index}.mp4", b"")
    assert ids([f"s3://{bucket}/p"]) == ["0", "1", "2", "3", "4"]


def test_a_place_that_is_no_place():
    with pytest.raises(StorageError, match="names no bucket"):
        files.split_s3("s3:///x")
    with pytest.raises(StorageError, match="expected a local path"):
        list_clips(["https://example.org/a.mp4"])
