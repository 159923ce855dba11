"""Clips in S3: fetched for the decoder, checked against the plan, once for all segments of a long one."""

import errno
from pathlib import Path

import pytest

from storage import copies
from tasks.decode import DecodePool, DecodeRequest
from tests import videos
from tests.videos import encode, read_numbers


@pytest.fixture
def clip(s3, tmp_path: Path) -> tuple[str, str]:
    """URI and content of a clip of 40 frames in S3."""
    bucket = s3.bucket()
    s3.client().upload_file(str(encode(tmp_path / "clip.mp4", frames=40)), bucket, "a/clip.mp4")
    answer = s3.client().head_object(Bucket=bucket, Key="a/clip.mp4")
    return f"s3://{bucket}/a/clip.mp4", f"{answer['ETag'].strip(chr(34))}-{answer['ContentLength']}"


def test_a_long_clip_is_fetched_once_for_all_its_segments(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, content = clip
    fetched: list[str] = []
    download = copies._download
    monkeypatch.setattr(copies, "_download", lambda uri, *rest: (fetched.append(uri), download(uri, *rest))[1])
    ranges = [(0, 20), (16, 36), (24, 40)]
    with DecodePool(workers=2, timeout_s=60) as pool:
        requests = [DecodeRequest(uri=uri, content=content, first=a, last=b, num_frames=40) for a, b in ranges]
        decoded = pool.decode(requests) + pool.decode(requests)
        kept = pool._clips._newest
        assert kept is not None
        assert Path(kept.path).exists()
    assert not Path(kept.path).exists()
    assert [read_numbers(d.frames) for d in decoded if d.frames is not None] == [
        list(range(a, b)) for a, b in ranges
    ] * 2
    assert fetched == [uri]


def test_an_object_that_changed_or_went_is_a_kind(s3, clip) -> None:
    uri, content = clip
    bucket = uri.split("/")[2]
    with DecodePool(timeout_s=60) as pool:
        request = DecodeRequest(uri=uri, content=content)
        assert pool.decode([request])[0].status == "ok"
        s3.client().put_object(Bucket=bucket, Key="a/clip.mp4", Body=b"something else")
        assert pool.decode([request])[0].kind == "changed"
        s3.client().delete_object(Bucket=bucket, Key="a/clip.mp4")
        assert pool.decode([request])[0].kind == "missing"


def test_a_server_that_does_not_answer_is_unreachable(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, content = clip
    monkeypatch.setattr(copies.files, "s3_client", lambda: _Broken())
    with DecodePool(timeout_s=60) as pool:
        decoded = pool.decode([DecodeRequest(uri=uri, content=content)])[0]
    assert (decoded.status, decoded.kind) == ("failed", "unreachable")


def test_a_full_disk_is_no_fault_of_the_clip(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, content = clip

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copies, "_download", full)
    with DecodePool(timeout_s=60) as pool, pytest.raises(OSError, match="No space"):
        pool.decode([DecodeRequest(uri=uri, content=content)])


class _Broken:
    def get_object(self, **_: object) -> None:
        raise OSError("503 Slow Down")


def test_a_folder_of_frames_in_s3_is_read(s3, tmp_path: Path) -> None:
    bucket = s3.bucket()
    for path in videos.image_folder(tmp_path / "clip", 11).iterdir():
        s3.client().upload_file(str(path), bucket, f"clip/{path.name}")
    with DecodePool(timeout_s=60) as pool:
        decoded = pool.decode([DecodeRequest(uri=f"s3://{bucket}/clip", kind="frames")])[0]
    assert decoded.frames is not None, decoded
    assert read_numbers(decoded.frames) == list(range(11))
