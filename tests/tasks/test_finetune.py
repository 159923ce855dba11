"""Fine-tuning learns, resumes exactly, and keeps the epoch its rule names; the papers' claims hold on drawn faces."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.frame_claims import cascade_claim, ecstfl_claim
from pthnet.augment import AUGMENT
from pthnet.emotions import label_map
from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from pthnet.losses import ecstfl_loss
from tasks.finetune import WithFeatures, fine_tune, frame_loss
from tasks.finetune_state import FinetuneSettings, FinetuneState
from tasks.frame_batches import FrameLoader, local_batches
from tasks.frame_lists import read_frames
from tasks.frame_schedule import FrameSchedule
from workflows.synth_frames import synth_frames

DFEW = label_map("dfew")
SMALL = FrameModel(model="resnet18", classes=DFEW.classes, image_size=32, width=8, depths=(1, 1, 1))
SETTINGS = FinetuneSettings(epochs=3, batch_size=16, gamma=10.0, augment="ec-stfl-image", step_epochs=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    synth_frames(folder, videos=8, frames=80, clips=0, images=210, size=32, noise=0.3)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loader(folder, settings=SETTINGS, first_epoch=0):
    how = {"root": str(folder / "images"), "labels": DFEW}
    train, test = (read_frames(str(folder / f"lists/images_{split}.csv"), **how) for split in ("train", "test"))
    schedule = FrameSchedule(
        train=np.arange(64), validation=np.arange(20), batch_size=settings.batch_size, epochs=settings.epochs,
        first_epoch=first_epoch, seed=settings.seed,
    )  # fmt: skip
    return FrameLoader(
        train=train, validation=test, schedule=schedule, size=32, augment=AUGMENT[settings.augment].at(32),
        train_labels=train["label"].to_numpy().astype(np.int64),
        validation_labels=test["label"].to_numpy().astype(np.int64),
    )  # fmt: skip


def run(folder, settings=SETTINGS, state=None, **kwargs):
    mine = loader(folder, settings, state.epoch if state else 0)
    torch.manual_seed(0)
    return fine_tune(SMALL.build(), SMALL, settings, mine, local_batches(mine), state=state, **kwargs)


def test_a_resumed_training_ends_where_the_uninterrupted_one_does(drawn, tmp_path):
    whole = run(drawn)

    class Killed(Exception):
        pass

    def die(state):
        state.save(tmp_path)
        if state.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        run(drawn, on_epoch=die)
    resumed = run(drawn, state=FinetuneState.load(tmp_path))
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]
    assert all(torch.equal(whole.model[name], resumed.model[name]) for name in whole.model)
    assert resumed.logits.shape == (len(loader(drawn).validation), 7)
    assert resumed.logits[20:].isnan().all()  # rows outside the schedule were not looked at
    assert not resumed.logits[:20].isnan().any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_goes_on_from_its_file_on_every_device(drawn, tmp_path, device, optimizer):
    settings = SETTINGS.changed(optimizer=optimizer, lr=1e-3)
    whole = run(drawn, settings, device=device, on_epoch=lambda state: state.epoch == 2 and state.save(tmp_path))
    resumed = run(drawn, settings, state=FinetuneState.load(tmp_path), device=device)
    assert [r["loss"] for r in resumed.history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-3)


def test_other_settings_do_not_resume_but_more_epochs_of_step_decay_do(drawn):
    state = run(drawn, SETTINGS.changed(epochs=1))
    with pytest.raises(ModelError, match=r"other settings \(lr\)"):
        run(drawn, SETTINGS.changed(epochs=1, lr=0.5), state=state)
    assert run(drawn, SETTINGS.changed(epochs=2), state=state).epoch == 2


def test_the_best_epoch_is_kept_only_when_asked_for(drawn):
    best = run(drawn, SETTINGS.changed(selection="best"))
    reached = [record["validation_war"] for record in best.history]
    assert best.chosen_epoch == int(np.argmax(reached)) + 1
    assert best.chosen_score == max(reached)
    assert best.chosen
    last = run(drawn)
    assert last.chosen_epoch == 3
    assert not last.chosen


def test_bf16_trains_too(drawn):
    state = run(drawn, SETTINGS.changed(epochs=1, precision="bf16"))
    assert math.isfinite(state.history[0]["loss"])


def test_a_loss_that_is_not_finite_stops_the_training(drawn):
    with pytest.raises(ModelError, match="lower the learning rate"):
        run(drawn, SETTINGS.changed(lr=1e30))


def test_a_list_of_unreadable_images_stops_the_training(drawn):
    mine = loader(drawn)
    gone = mine.train.set_column(2, "uri", [[f"/nowhere/{i}.jpg" for i in range(len(mine.train))]])
    mine = replace(mine, train=gone)
    with pytest.raises(ModelError, match=r"no training sample could be read.*nowhere"):
        fine_tune(SMALL.build(), SMALL, SETTINGS, mine, local_batches(mine))


def test_the_published_recipes():
    stfl = FinetuneSettings.published("r3d_18")
    assert (stfl.optimizer, stfl.lr, stfl.momentum, stfl.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (stfl.epochs, stfl.batch_size, stfl.gamma, stfl.precision) == (200, 32, 10.0, "fp32")
    assert [stfl.rate(e) for e in (0, 49.9, 50, 150)] == pytest.approx([0.01, 0.01, 0.001, 1e-5])
    cfc = FinetuneSettings.published("swin_s")
    assert (cfc.optimizer, cfc.lr, cfc.weight_decay, cfc.label_smoothing) == ("adamw", 5e-4, 0.05, 0.1)
    assert cfc.balanced
    assert cfc.rate(0) == 0.0
    assert cfc.rate(0.5) == pytest.approx(2.5e-4)
    assert cfc.rate(1.0) == pytest.approx(5e-4)
    assert cfc.rate(20.0) == pytest.approx(0.0, abs=1e-12)


def test_the_loss_is_cross_entropy_plus_gamma_times_ecstfl_over_labelled_samples(device):
    torch.manual_seed(0)
    logits, features = torch.randn(6, 3), torch.randn(6, 5)
    labels = torch.tensor([0, 1, -1, 2, 0, -1])
    known = labels >= 0
    total, ce, spread = (part.cpu() for part in frame_loss(logits.to(device), features.to(device), labels, gamma=10.0))
    wanted = torch.nn.functional.cross_entropy(logits[known], labels[known])
    torch.testing.assert_close(ce, wanted)
    torch.testing.assert_close(spread, ecstfl_loss(features[known], labels[known]))
    torch.testing.assert_close(total, ce + 10 * spread)


def test_samples_without_a_label_count_in_no_sum(drawn, device):
    whole = loader(drawn)
    labels = whole.train_labels.copy()
    labels[:64:3] = -1
    some = replace(whole, train_labels=labels)
    known = np.flatnonzero(labels[:64] >= 0)
    settings = SETTINGS.changed(epochs=1, lr=0.0)
    torch.manual_seed(0)
    model = SMALL.build()
    record = fine_tune(model, SMALL, settings, some, local_batches(some), device=device).history[0]
    model.cpu().train()
    losses, right = [], 0
    for batch in local_batches(some):
        if not batch.training or batch.epoch:
            continue
        taught = batch.labels >= 0
        with torch.no_grad():
            logits, features = WithFeatures(model)(SMALL.pixels(torch.from_numpy(batch.frames)))
        target = torch.from_numpy(batch.labels[taught])
        ce = torch.nn.functional.cross_entropy(logits[taught], target)
        losses.append((float(ce + 10 * ecstfl_loss(features[taught], target)), int(taught.sum())))
        right += int((logits[taught].argmax(1) == target).sum())
    assert sum(count for _, count in losses) == len(known)
    assert record["loss"] == pytest.approx(sum(loss * count for loss, count in losses) / len(known), rel=1e-4)
    assert record["train_war"] == right / len(known)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [1, -1, -1], [2, 2, 2]])
def test_the_loss_is_finite_without_labels_for_one_sample_and_for_one_class(labels):
    logits, features = torch.zeros(3, 3, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    total, _, _ = frame_loss(logits, features, torch.tensor(labels), gamma=10.0)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(features.grad).all()


def test_ecstfl_draws_classes_together_against_cross_entropy(drawn):
    found = ecstfl_claim(drawn, size=32, width=8, depths=(1, 1, 1), epochs=8, seed=0)
    assert found["CE + 10 EC-STFL"]["ratio"] < found["CE"]["ratio"] < 1


def test_smoothing_raises_macro_f1_when_single_frames_are_spoilt(drawn):
    found = cascade_claim(drawn, size=32, width=8, depths=(1, 1, 1), epochs=6, seed=0)
    assert found["cascade, smoothed"] > found["cascade"] > 1 / 8
    assert found["flat, smoothed"] > found["flat"]
