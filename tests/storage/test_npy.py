import numpy as np
import pytest

from storage import commits, npy
from storage.errors import StorageError
from storage.features import FeatureTable
from storage.lists import read_list
from storage.plan import plan
from storage.quarantine import QUARANTINE
from storage.shards import write_shard

COUNTS = {28: (4, 3, 2), 31: (5, 3, 2), 47: (9, 5, 3), 10: (1, 1, 1)}


def tree(root, clips, *, direction="forward", face=False, same=True, dim=6):
    """A published tree of clips {id: frames}; with same=False each stride's features differ a little."""
    for name, frames in clips.items():
        full = np.random.default_rng(frames).standard_normal((64, dim)).astype(np.float32)
        for level, count in zip(("high", "middle", "low"), COUNTS[frames], strict=True):
            stride = npy.STRIDES[level]
            starts = np.minimum(np.arange(count) * stride, max(0, frames - 16))
            path = root / "D" / npy.folder_name(level, direction, face) / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, full[starts] + (0 if same else 1e-5 * stride))


def bring_in(root, uri, **kwargs):
    clips = npy.list_published(str(root), "D", face=kwargs.get("face", False))
    problems = []
    for part in npy.read_published(clips, "published", **kwargs):
        shards = [write_shard(part.rows, uri, "published")] if part.rows.num_rows else []
        commits.commit(uri, shards, part.problems, "import", commits.committed(uri, "import") + 1, "run")
        problems += part.problems.to_pylist()
    return {row["clip_id"]: (row["kind"], row["detail"]) for row in problems}


def test_a_tree_goes_in_and_comes_out_bit_for_bit(tmp_path):
    clips = {"Crime/Angry/0063": 28, "b c": 31, "ü": 47, "short": 10}
    for face in (False, True):
        for same in (False, True):
            root, out, uri = (tmp_path / f"{name}{face}{same}" for name in ("in", "out", "table"))
            for direction in ("forward", "reverse"):
                tree(root, clips, direction=direction, face=face, same=same)
            assert bring_in(root, str(uri), face=face) == {}
            for direction in ("forward", "reverse"):
                got = FeatureTable(str(uri)).load(sorted(clips), direction, "published")
                assert npy.export_published(got, str(out), "D", direction, face=face) == 12
            before = {p.relative_to(root): np.load(p) for p in root.rglob("*.npy")}
            after = {p.relative_to(out): np.load(p) for p in out.rglob("*.npy")}
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[name], after[name]) for name in before)


def test_windows_that_agree_are_kept_once(tmp_path):
    tree(tmp_path / "in", {"a": 47}, same=True)
    bring_in(tmp_path / "in", str(tmp_path / "shared"))
    shared = FeatureTable(str(tmp_path / "shared")).load(["a"], "forward", "published")
    assert shared.num_windows.tolist() == [9]
    assert shared.middle.tolist() == [0, 2, 4, 6, 8]
    assert shared.low.tolist() == [0, 4, 8]
    tree(tmp_path / "in", {"a": 47}, same=False)
    bring_in(tmp_path / "in", str(tmp_path / "apart"))
    assert FeatureTable(str(tmp_path / "apart")).load(["a"], "forward", "published").num_windows.tolist() == [17]
    bring_in(tmp_path / "in", str(tmp_path / "close"), tolerance=1e-3)
    assert FeatureTable(str(tmp_path / "close")).load(["a"], "forward", "published").num_windows.tolist() == [9]


def test_frames_come_from_a_list_and_else_from_the_counts(tmp_path):
    tree(tmp_path / "in", {"a": 31, "b": 31})
    (tmp_path / "l.txt").write_text("a 31 0\n")
    bring_in(tmp_path / "in", str(tmp_path / "t"), lists={"l": read_list(str(tmp_path / "l.txt"))})
    got = FeatureTable(str(tmp_path / "t")).load(["a", "b"], "forward", "published")
    assert got.num_frames.tolist() == [31, 32]
    assert got.starts.tolist() == [0, 4, 8, 12, 15, 0, 4, 8, 12, 16]


def test_bad_files_become_quarantine_rows_and_the_others_go_in(tmp_path):
    root = tmp_path / "in"
    names = ["good", "text", "pickle", "flat", "nan", "gone", "counts", "dim"]
    tree(root, dict.fromkeys(names, 28))
    high = root / "D" / "th14_vit_g_16_4"
    (high / "text.npy").write_text("text")
    np.save(high / "pickle.npy", np.array([{"run": "code"}], object), allow_pickle=True)
    np.save(high / "flat.npy", np.zeros(6, np.float32))
    np.save(high / "nan.npy", np.full((4, 6), np.nan, np.float32))
    (high / "gone.npy").unlink()
    np.save(high / "counts.npy", np.zeros((9, 6), np.float32))
    np.save(high / "dim.npy", np.zeros((4, 5), np.float32))
    problems = bring_in(root, str(tmp_path / "t"))
    assert {name: kind for name, (kind, _) in problems.items()} == {
        "text": "unreadable",
        "pickle": "unreadable",
        "flat": "not_features",
        "nan": "not_finite",
        "gone": "missing_level",
        "counts": "counts_inconsistent",
        "dim": "dim_mismatch",
    }
    assert FeatureTable(str(tmp_path / "t")).keys()["clip_id"].to_pylist() == ["good"]


def test_counts_are_checked_against_the_lists(tmp_path):
    tree(tmp_path / "in", {"a": 28, "b": 28, "c": 28})
    (tmp_path / "w.txt").write_text(
        "get_features/D/th14_vit_g_16_16/a.npy 2 0\nget_features/D/th14_vit_g_16_16/b.npy 3 0\n"
    )
    (tmp_path / "f.txt").write_text("c 90 0\n")
    lists = {name: read_list(str(tmp_path / name)) for name in ("w.txt", "f.txt")}
    problems = bring_in(tmp_path / "in", str(tmp_path / "t"), lists=lists)
    assert problems["b"] == ("count_mismatch", "w.txt says 3 windows, found 2 low")
    assert problems["c"][0] == "count_mismatch"
    assert "a" not in problems


def test_directions_that_differ_by_a_clip_are_no_problem(tmp_path):
    tree(tmp_path / "in", {"a": 28, "b": 28})
    tree(tmp_path / "in", {"a": 28}, direction="reverse")
    assert bring_in(tmp_path / "in", str(tmp_path / "t")) == {}
    kept = FeatureTable(str(tmp_path / "t"))
    assert kept.load(["a", "b"], "forward", "published").clip_ids == ["a", "b"]
    with pytest.raises(StorageError, match="'b'"):
        kept.load(["a", "b"], "reverse", "published")


def test_importing_again_is_a_no_op_until_a_file_changes(tmp_path):
    tree(tmp_path / "in", {"a": 28, "b": 31})
    bring_in(tmp_path / "in", str(tmp_path / "t"))
    none = QUARANTINE.empty_table()
    keys = FeatureTable(str(tmp_path / "t")).keys()
    assert plan(npy.list_published(str(tmp_path / "in"), "D"), keys, none, "published").counts["known"] == 2
    np.save(tmp_path / "in/D/th14_vit_g_16_4/a.npy", np.zeros((4, 6)))
    assert plan(npy.list_published(str(tmp_path / "in"), "D"), keys, none, "published").counts["changed"] == 1


def test_a_tree_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match=r"expected th14_vit_g_16_4_face/<clip>.npy"):
        npy.list_published(str(tmp_path), "D", face=True)


def test_a_tree_in_s3(moto, tmp_path):
    tree(tmp_path, {"a/b": 28})
    bucket = moto.bucket()
    for path in tmp_path.rglob("*.npy"):
        moto.put(bucket, f"get_features/{path.relative_to(tmp_path)}", path.read_bytes())
    uri = f"s3://{bucket}/table"
    assert bring_in(f"s3://{bucket}/get_features", uri) == {}
    got = FeatureTable(uri).load(["a/b"], "forward", "published")
    npy.export_published(got, f"s3://{bucket}/out", "D", "forward")
    body = moto.client().get_object(Bucket=bucket, Key="out/D/th14_vit_g_16_8/a/b.npy")["Body"].read()
    assert body == (tmp_path / "D/th14_vit_g_16_8/a/b.npy").read_bytes()
