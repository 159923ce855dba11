"""The drawn faces have the layouts, the accidents and the repeatability that the tests rest on."""

import numpy as np
import pytest

from pthnet.emotions import label_map
from storage.errors import StorageError
from tasks.frame_faces import CLASSES, FaceSettings, draw_clip, draw_image, draw_video, spoil
from tasks.frame_lists import is_clips, read_frames
from workflows.synth_frames import synth_frames


def test_equal_seeds_draw_equal_videos():
    one, again, other = (draw_video(seed, 0, 40, FaceSettings(size=24)) for seed in (1, 1, 2))
    assert (one.labels == again.labels).all()
    for a, b in zip(one.faces, again.faces, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a == b).all()
    assert (one.labels != other.labels).any()


def test_a_video_lacks_some_faces_and_some_labels_and_shows_several_expressions():
    video = draw_video(0, 0, 300, FaceSettings(size=16))
    missing = np.mean([face is None for face in video.faces])
    assert 0 < missing < 0.1
    assert 0 < np.mean(video.labels == -1) < 0.15
    assert len(set(video.labels.tolist())) > 4


@pytest.mark.parametrize("name", CLASSES)
def test_expressions_differ_from_each_other(name):
    settings = FaceSettings(size=48, noise=0.0, weakest=1.0)
    mine = draw_image(0, 5, name, settings).astype(int)
    for other in CLASSES:
        apart = np.abs(mine - draw_image(0, 5, other, settings)).mean()
        assert (apart == 0) == (other == name)


def test_accidents_change_pixels_and_keep_the_shape():
    image = draw_image(0, 0, "Happiness", FaceSettings(size=32, noise=0.0))
    for seed in range(6):
        spoilt = spoil(np.random.default_rng(seed), image)
        assert spoilt.shape == image.shape
        assert spoilt.dtype == np.uint8
        assert (spoilt != image).any()


def test_clips_have_their_length():
    assert len(draw_clip(0, 0, 17, "Fear", FaceSettings(size=16))) == 17


def test_the_layouts_are_those_the_readers_read(tmp_path):
    synth_frames(tmp_path, videos=4, frames=30, clips=14, images=28, size=24, test_share=0.5)
    annotated = read_frames(str(tmp_path / "EXPR/val"), root=str(tmp_path / "faces"), labels=label_map("affwild2"))
    assert len(annotated) == 60
    clips = read_frames(str(tmp_path / "lists/clips_train.txt"), root=str(tmp_path / "clips"), labels=label_map("dfew"))
    assert is_clips(clips)
    assert sorted(clips["label"].to_pylist()) == list(range(7))
    images = read_frames(
        str(tmp_path / "lists/images_test.csv"), root=str(tmp_path / "images"), labels=label_map("dfew")
    )
    assert len(images) == 14
    before = (tmp_path / "frames.json").stat().st_mtime_ns
    synth_frames(tmp_path, videos=4, frames=30, clips=14, images=28, size=24, test_share=0.5)
    assert (tmp_path / "frames.json").stat().st_mtime_ns == before
    with pytest.raises(StorageError, match="another drawn data set"):
        synth_frames(tmp_path, videos=5)
