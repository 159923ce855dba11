"""Batches hold what the lists say, each image read once, and damaged ones take nobody with them."""

from collections import Counter

import cv2
import numpy as np
import pytest

from pthnet.augment import Augment, resize
from pthnet.emotions import label_map
from tasks import frame_batches
from tasks.frame_batches import FrameBatch, FrameLoader, local_batches, read_image
from tasks.frame_lists import read_frames
from tasks.frame_schedule import FrameSchedule

RNG = np.random.default_rng(0)


def save(path, value=None, side=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3)
    image = RNG.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def images(tmp_path):
    for number in range(10):
        save(tmp_path / f"{number}.png", number)
    lines = [f"{number}.png,{number % 7}" for number in range(10)]
    (tmp_path / "l.csv").write_text("\n".join(["filePath,expression", *lines]) + "\n")
    return read_frames(str(tmp_path / "l.csv"), root=str(tmp_path), labels=label_map("dfew"))


@pytest.fixture
def clips(tmp_path):
    for clip, frames in (("a", 25), ("b", 3)):
        for number in range(1, frames + 1):
            save(tmp_path / f"{clip}/{number}.png", 10 * (clip == "b") + number)
    (tmp_path / "l.txt").write_text("a 25 0\nb 3 1\n")
    return read_frames(str(tmp_path / "l.txt"), root=str(tmp_path), labels=label_map("dfew"))


def loader(table, *, augment=None, size=8, **schedule):
    labels = table["label"].to_numpy().astype(np.int64)
    return FrameLoader(
        train=table, validation=table, train_labels=labels, validation_labels=labels,
        schedule=FrameSchedule(**{"train": np.empty(0, np.int64), **schedule}), size=size, augment=augment,
    )  # fmt: skip


@pytest.fixture
def reads(monkeypatch):
    """How often each image is read."""
    counted = Counter()

    def counting(uri):
        counted[uri] += 1
        return read_image(uri)

    monkeypatch.setattr(frame_batches, "read_image", counting)
    return counted


def test_every_sample_comes_with_its_own_label_and_pixels(images):
    batches = list(local_batches(loader(images, validation=np.arange(10), batch_size=4)))
    assert [len(batch.index) for batch in batches] == [4, 4, 2]
    for batch in batches:
        assert (batch.labels == batch.index % 7).all()
        assert batch.frames.shape[1:] == (1, 8, 8, 3)
        assert (batch.frames[:, 0, 0, 0, 0] == batch.index).all()


def test_evaluation_of_a_clip_takes_the_published_frames_in_natural_order(clips):
    (batch,) = local_batches(loader(clips, validation=np.arange(2)))
    assert batch.frames[0, :, 0, 0, 0].tolist() == [n + 1 for o in (1, 4, 7, 10, 13, 16, 19, 22) for n in (o, o + 1)]
    assert batch.frames[1, :, 0, 0, 0].tolist() == [11, 12] * 8


def test_training_redraws_frames_and_changes_in_every_epoch_and_a_resumed_run_draws_the_same(clips):
    augment = Augment(size=8, flip_p=0.5)
    whole = list(local_batches(loader(clips, train=np.arange(2), batch_size=2, epochs=3, augment=augment)))
    assert not np.array_equal(whole[0].frames, whole[1].frames)
    (last,) = local_batches(loader(clips, train=np.arange(2), batch_size=2, epochs=3, first_epoch=2, augment=augment))
    assert np.array_equal(last.frames, whole[2].frames)


def test_no_image_is_read_twice_in_an_epoch_not_even_for_copies_of_a_rare_sample(images, reads):
    plan = {"train": np.arange(10), "repeats": np.full(10, 3.0), "batch_size": 3, "page_batches": 10}
    batches = list(local_batches(loader(images, augment=Augment(size=8), **plan)))
    assert sum(len(batch.index) for batch in batches) == 30
    assert set(reads.values()) == {1}
    assert len(reads) == 10


def test_frames_that_a_clip_shows_twice_are_read_once(clips, reads):
    list(local_batches(loader(clips, validation=np.arange(2))))
    assert set(reads.values()) == {1}


def test_unreadable_images_are_values_not_exceptions(images, tmp_path):
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "5.png").unlink()
    (batch,) = local_batches(loader(images, validation=np.arange(10)))
    assert batch.labels.tolist() == [0, 1, 2, -1, 4, -1, 6, 0, 1, 2]
    assert np.flatnonzero(~batch.readable).tolist() == [3, 5]
    assert "3.png: not a readable image" in batch.failures[0]
    assert len(batch.failures) == 2


def test_a_batch_survives_its_arrow_row_without_a_copy(images):
    (batch,) = local_batches(loader(images, validation=np.arange(10)))
    again = FrameBatch.from_arrow(batch.to_arrow())
    assert np.array_equal(again.frames, batch.frames)
    for name in ("training", "epoch", "failures"):
        assert getattr(again, name) == getattr(batch, name)
    for name in ("index", "labels", "readable"):
        assert np.array_equal(getattr(again, name), getattr(batch, name))
    assert np.shares_memory(again.frames, batch.frames)


def test_frames_of_unequal_size_are_brought_to_one(tmp_path):
    save(tmp_path / "a/1.png", 7, side=10)
    save(tmp_path / "a/2.png", 9, side=30)
    (tmp_path / "l.txt").write_text("a 2 0\n")
    table = read_frames(str(tmp_path / "l.txt"), root=str(tmp_path), labels=label_map("dfew"))
    (batch,) = local_batches(loader(table, train=np.arange(1), batch_size=1, augment=Augment(size=8, flip_p=0.5)))
    assert set(batch.frames[0, :, 4, 4, 0].tolist()) == {7, 9}


def test_the_test_transform_is_a_plain_resize(tmp_path):
    save(tmp_path / "x.png", side=31)
    table = read_frames(_csv(tmp_path, "x.png"), root=str(tmp_path), labels=label_map("dfew"))
    (batch,) = local_batches(loader(table, validation=np.arange(1), augment=Augment(size=8, flip_p=1.0)))
    assert np.array_equal(batch.frames[0], resize(read_image(str(tmp_path / "x.png"))[None], 8))


def _csv(folder, name):
    (folder / "one.csv").write_text(f"filePath,expression\n{name},0\n")
    return str(folder / "one.csv")
