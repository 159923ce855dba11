import os
import pickle
from pathlib import Path

import pytest

from storage.copies import local_copy
from storage.errors import StorageError, Unreadable
from storage.features import FeatureTable
from storage.shards import write_shard
from storage.sources import list_clips
from tests import servers
from tests.storage.rows import row, table


def only(source):
    return list_clips([str(source)]).to_pylist()[0]


def test_a_local_clip_is_read_where_it_is(tmp_path):
    (tmp_path / "a b.mp4").write_bytes(b"video")
    clip = only(tmp_path)
    with local_copy(clip["uri"], clip["kind"], content=clip["content"]) as path:
        assert path == clip["uri"]
    for fingerprint in ("stat", "sha256"):
        content = list_clips([str(tmp_path)], fingerprint=fingerprint)["content"][0].as_py()
        with local_copy(clip["uri"], content=content) as path:
            assert Path(path).read_bytes() == b"video"


def test_a_clip_that_changed_or_went_is_told_from_others(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"video")
    clip = only(tmp_path)
    video.write_bytes(b"another")
    with (
        pytest.raises(Unreadable, match="changed since it was planned") as error,
        local_copy(clip["uri"], content=clip["content"]),
    ):
        pass
    assert error.value.kind == "changed"
    assert pickle.loads(pickle.dumps(error.value)).kind == "changed"
    video.unlink()
    with pytest.raises(Unreadable) as error, local_copy(clip["uri"]):
        pass
    assert error.value.kind == "missing"


def test_a_clip_that_changes_while_it_is_read_is_not_taken(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/1.jpg").write_bytes(b"1")
    clip = only(tmp_path)
    with pytest.raises(Unreadable, match="changed"), local_copy(clip["uri"], "frames", content=clip["content"]):
        (tmp_path / "f/2.jpg").write_bytes(b"2")


def test_objects_are_copied_and_the_copies_removed(s3):
    bucket = s3.bucket()
    s3.put(bucket, "v/ü 1.mp4", b"video")
    s3.put(bucket, "f/2.jpg", b"2")
    s3.put(bucket, "f/10.jpg", b"10")
    video, frames = only(f"s3://{bucket}/v"), only(f"s3://{bucket}/f")
    with local_copy(video["uri"], content=video["content"]) as path:
        assert Path(path).read_bytes() == b"video"
        assert path.endswith(".mp4")
    assert not os.path.exists(path)
    with local_copy(frames["uri"], "frames", content=frames["content"]) as folder:
        assert {name: Path(folder, name).read_bytes() for name in os.listdir(folder)} == {
            "2.jpg": b"2",
            "10.jpg": b"10",
        }
    s3.put(bucket, "v/ü 1.mp4", b"other")
    s3.put(bucket, "f/2.jpg", b"3")
    for clip in (video, frames):
        with pytest.raises(Unreadable) as error, local_copy(clip["uri"], clip["kind"], content=clip["content"]):
            pass
        assert error.value.kind == "changed"
    for kind in ("video", "frames"):
        with pytest.raises(Unreadable) as error, local_copy(f"s3://{bucket}/none", kind):
            pass
        assert error.value.kind == "missing"


def test_a_server_that_fails_at_random_is_asked_again(moto, monkeypatch):
    bucket = moto.bucket()
    body = os.urandom(3_000_000)
    moto.put(bucket, "v/a.mp4", body)
    with servers.FaultyProxy(moto.endpoint, rate=0.4, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for _ in range(4):
            clip = only(f"s3://{bucket}/v")
            with local_copy(clip["uri"], content=clip["content"]) as path:
                assert Path(path).read_bytes() == body
        assert proxy.injected >= 3


def test_a_body_cut_short_goes_on_where_it_stopped(moto, monkeypatch):
    bucket = moto.bucket()
    body = os.urandom(3_000_000)
    moto.put(bucket, "v/a.mp4", body)
    clip = only(f"s3://{bucket}/v")
    with servers.FaultyProxy(moto.endpoint, rate=1, limit=3, faults=("cut",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with local_copy(clip["uri"], content=clip["content"]) as path:
            assert Path(path).read_bytes() == body
        assert proxy.injected == 3


def check_refusal(uri):
    for act in (
        lambda: list_clips([uri]),
        lambda: FeatureTable(uri).keys(),
        lambda: FeatureTable(uri).extractors(),
        lambda: FeatureTable(uri).put_extractor("e", "{}"),
        lambda: write_shard(table(row("a")), uri, "e-1"),
    ):
        with pytest.raises(StorageError, match="S3 refused the credentials; check AWS_ACCESS_KEY_ID") as error:
            act()
        assert "\n" not in str(error.value)
        assert "mistake" not in str(error.value)
    with pytest.raises(Unreadable) as refused, local_copy(f"{uri}/a.mp4"):
        pass
    assert refused.value.kind == "access_denied"


def test_refused_credentials_are_one_line_without_the_secret(s3, monkeypatch):
    uri = f"s3://{s3.bucket()}/t"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-mistake")
    # moto checks no signature, so a proxy in front of it refuses.
    with servers.FaultyProxy(s3.endpoint, rate=1, faults=("refused",)) as proxy:
        if s3.mock:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        check_refusal(uri)


def test_a_bucket_or_server_that_is_not_there(moto, monkeypatch):
    with pytest.raises(StorageError, match="no such bucket"):
        list_clips(["s3://no-such-bucket/x"])
    monkeypatch.setattr("storage.files.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(StorageError, match="no answer from S3 at http://127"):
        list_clips(["s3://bucket/x"])
