"""Probing: headers tell the length of a clip, and bad headers tell nothing, without an error."""

from pathlib import Path

import av
import numpy as np
import pytest

from tasks.probe import Probe, probe
from tests import videos
from tests.videos import encode


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("h264", ".mkv"), ("vp9", ".webm"), ("av1", ".mp4"), ("mpeg4", ".avi")]
)
def test_a_header_gives_length_rate_and_size(tmp_path: Path, codec: str, suffix: str) -> None:
    path = encode(tmp_path / f"clip{suffix}", codec, frames=50, size=(80, 48), fps=20)
    for exact in (False, True):
        found = probe(str(path), exact=exact)
        assert (found.num_frames, found.width, found.height) == (50, 80, 48)
        assert found.fps == pytest.approx(20)
    assert probe(str(path), exact=True).exact


def test_uneven_timing_is_counted_exactly_when_asked(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", frames=47, uneven=True)
    assert abs(probe(str(path)).num_frames - 47) <= 5
    assert probe(str(path), exact=True).num_frames == 47


@pytest.mark.parametrize("exact", [False, True])
def test_what_cannot_be_read_has_no_frames(tmp_path: Path, exact: bool) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("words")
    (tmp_path / "empty.mp4").touch()
    silent = videos.audio_only(tmp_path / "silent.mp4")
    for path in (text, tmp_path / "empty.mp4", silent, tmp_path / "gone.mp4", tmp_path):
        assert probe(str(path), exact=exact) == Probe()


def test_tags_in_no_known_encoding_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "a title in no encoding"
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for image in videos.numbered_frames(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    written = path.read_bytes()
    assert b"a title" in written
    path.write_bytes(written.replace(b"a title", b"\xff\xfe\xfd\xfc\xff\x80\x81"))
    assert probe(str(path), exact=True).num_frames == 3


def test_damaged_headers_never_raise(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", frames=20, faststart=True).read_bytes()
    rng = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / f"{index}.mp4"
        path.write_bytes(whole)
        videos.mutate(path, rng)
        assert probe(str(path), exact=bool(index % 2)).num_frames >= 0


def test_images_are_counted(tmp_path: Path) -> None:
    folder = videos.image_folder(tmp_path / "clip", 12)
    (folder / "notes.txt").write_text("not a frame")
    assert probe(str(folder), "frames").num_frames == 12
    assert probe(str(folder / "1.png"), "image").num_frames == 1
    assert probe(str(tmp_path / "gone"), "frames") == Probe()


def test_clips_in_s3_are_probed_without_fetching_them_whole(s3, tmp_path: Path) -> None:
    bucket = s3.bucket()
    path = encode(tmp_path / "clip.mp4", frames=50)
    s3.client().upload_file(str(path), bucket, "a/clip.mp4")
    for name in ("1.png", "2.png"):
        s3.client().put_object(Bucket=bucket, Key=f"a/frames/{name}", Body=b"x")
    assert probe(f"s3://{bucket}/a/clip.mp4").num_frames == 50
    assert probe(f"s3://{bucket}/a/clip.mp4", exact=True) == Probe(
        num_frames=50, fps=25.0, width=64, height=64, exact=True
    )
    assert probe(f"s3://{bucket}/a/frames", "frames").num_frames == 2
    assert probe(f"s3://{bucket}/a/gone.mp4") == probe(f"s3://{bucket}/a/gone.mp4", exact=True) == Probe()
