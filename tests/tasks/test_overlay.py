"""Overlays and timelines of real clips: size, rate and length are the clip's, and something is drawn in."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tasks.illustrate import PictureJob, illustrate, illustrate_all
from tasks.overlay import Painter, sprite
from tasks.timeline import save_timeline
from tasks.track import Track, track_of
from tests import servers, videos
from tests.predicted import small_bundle, some_scores


def track(frames: int, classes: tuple[str, ...] = ("Happy", "Sad", "Neutral")) -> Track:
    bundle = small_bundle(classes=classes)
    return track_of(some_scores(bundle, [frames])[0], 0, classes)


def job(path: Path, out: Path, frames: int, **options: object) -> PictureJob:
    settings = {"uri": str(path), "kind": "video", "content": "c", "folder": str(out), "model": "m", **options}
    return PictureJob(track=track(frames), **settings)  # type: ignore[arg-type]


def read(path: Path) -> tuple[np.ndarray, Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, Fraction(stream.average_rate or 0)


def test_an_overlay_has_the_size_rate_and_length_of_its_clip(tmp_path: Path) -> None:
    grey = np.full((30, 180, 320, 3), 128, np.uint8)
    path = videos.encode(tmp_path / "grey.mp4", frames=grey, fps=24)
    made = illustrate(job(path, tmp_path / "out", 30))
    frames, rate = read(tmp_path / "out" / made.overlay)
    assert (frames.shape, rate) == ((30, 180, 320, 3), 24)
    changed = np.abs(frames.astype(int) - 128).max(-1) > 40
    assert changed[:, :30, :120].any((1, 2)).all(), "the label stands in every frame"
    assert changed[:, 110:, :].any((1, 2)).all(), "and so do the bars"
    assert not changed[:, 40:90, 200:].any(), "the rest is left alone"
    assert cv2.imread(str(tmp_path / "out" / made.timeline)).shape[1] == 840
    assert cv2.imread(str(tmp_path / "out" / made.thumbnail)).shape[:2] == (96, 171)


def test_a_turned_phone_video_comes_out_upright(tmp_path: Path) -> None:
    frames = np.zeros((20, 64, 128, 3), np.uint8)
    frames[:, :, :64] = (255, 0, 0)
    path = videos.encode(tmp_path / "turned.mp4", frames=frames, rotation=90)
    made = illustrate(job(path, tmp_path / "out", 20))
    shown, _ = read(tmp_path / "out" / made.overlay)
    assert shown.shape[1:3] == (128, 64)
    # Turned counter-clockwise the red left half lies at the bottom.
    assert shown[10, 70, 60, 0] > 150
    assert shown[10, 40, 60, 0] < 100


def test_odd_sides_grow_by_one_as_h264_needs_and_folders_of_frames_play_too(tmp_path: Path) -> None:
    videos.image_folder(tmp_path / "frames", 18, size=(63, 95))
    made = illustrate(job(tmp_path / "frames", tmp_path / "out", 18, kind="frames"))
    frames, rate = read(tmp_path / "out" / made.overlay)
    assert (frames.shape[1:3], len(frames), rate) == ((96, 64), 18, 25)


def test_a_clip_on_s3_gets_its_pictures_too(tmp_path: Path, moto: servers.S3Server) -> None:
    bucket = moto.bucket()
    moto.put(bucket, "clips/a.mp4", videos.encode(tmp_path / "a.mp4", frames=20).read_bytes())
    made = illustrate(job(Path("unused"), tmp_path / "out", 20, uri=f"s3://{bucket}/clips/a.mp4"))
    assert (made.problem, bool(made.overlay), bool(made.timeline)) == ("", True, True)


def test_a_two_hour_video_has_a_timeline(tmp_path: Path) -> None:
    save_timeline(track(20_000), [], tmp_path / "long.png")
    assert (tmp_path / "long.png").stat().st_size > 10_000


@pytest.mark.parametrize(("height", "width"), [(24, 24), (64, 40), (720, 1280)])
def test_drawing_fits_frames_of_any_size(height: int, width: int) -> None:
    given = np.full((height, width, 3), 90, np.uint8)
    picture = Painter(track(40), height, width).paint(given, 20)
    assert picture.shape == given.shape
    assert (given == 90).all(), "the frame itself is left as it was"
    assert (picture != 90).any()


def test_names_in_any_alphabet_are_drawn() -> None:
    assert not np.array_equal(sprite("радость", 20), sprite("печаль!", 20))
    classes = tuple(f"Überraschung {number}" for number in range(43))
    Painter(track(40, classes), 240, 320).paint(np.zeros((240, 320, 3), np.uint8), 0)


def test_pictures_are_made_once_and_a_bad_file_costs_its_own_only(tmp_path: Path) -> None:
    good = videos.encode(tmp_path / "good.mp4", frames=20)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    jobs = [job(bad, tmp_path / "out", 20), job(good, tmp_path / "out", 20, content="other")]
    first = illustrate_all(jobs, workers=1)
    assert first[0].problem
    assert not first[0].overlay
    assert first[1].overlay
    assert first[1].timeline
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert not [path for path in before if path.suffix == ".part"]
    assert illustrate_all(jobs[1:], workers=1) == first[1:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before
    assert PictureJob(**{**vars(jobs[1]), "model": "another"}).missing()
