"""Folds trained together are the folds trained alone, and their report is the pooled one."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig
from pthnet.htnet_stack import stack_of
from pthnet.metrics import scores
from pthnet.micro_expressions import CLASSES, HTNET_PUBLISHED
from storage.errors import StorageError
from tasks import loso_train
from tasks.loso_data import leave_one_out
from tasks.loso_report import summarize, table_rows, write_report
from tasks.loso_results import LosoStudy, open_run, save_outcome
from tasks.loso_train import FoldOutcome, LosoSettings, bytes_of_fold, folds_at_once, train_folds

CONFIG = HTNetConfig(dim=6, depths=(1, 1, 1))
SETTINGS = LosoSettings(config=CONFIG, epochs=4, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(0)
    subjects = np.repeat(["a", "b", "c", "d"], [3, 7, 5, 6])  # training sets of 18, 14, 16, 15 with batches of 8
    labels = np.arange(21) % 3
    images = draw.uniform(0, 60, (21, 3, 28, 28)).astype(np.float32)
    for row, label in enumerate(labels):
        images[row, label, 7:21] += 150
    return images, labels.astype(np.int64), subjects


def test_folds_of_unequal_size_in_a_stack_have_the_losses_of_the_plain_loop(samples):
    images, labels, subjects = samples
    folds = leave_one_out(subjects)
    full = replace(SETTINGS, config=replace(CONFIG, attention="block-full"))
    alone = [train_folds(images, labels, [fold], full)[0] for fold in folds]
    together = train_folds(images, labels, folds, SETTINGS, keep_weights=True)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.losses, one.losses, rtol=1e-3)
        np.testing.assert_allclose(other.logits, one.logits, rtol=1e-2, atol=1e-3)
        assert other.epoch == 4
    model = HTNet(CONFIG)
    model.load_state_dict(together[0].weights)


def test_training_learns_what_distinguishes_the_classes(samples):
    images, labels, subjects = samples
    settings = replace(SETTINGS, epochs=25, learning_rate=3e-3)
    outcomes = train_folds(images, labels, leave_one_out(subjects), settings)
    right = sum(int((outcome.logits.argmax(1) == labels[outcome.test]).sum()) for outcome in outcomes)
    assert right >= 18
    assert outcomes[0].losses[-1] < outcomes[0].losses[0] / 2


def test_best_on_test_takes_the_first_epoch_with_the_most_right_answers(samples):
    images, labels, subjects = samples
    folds = leave_one_out(subjects)
    last = train_folds(images, labels, folds, SETTINGS)
    best = train_folds(images, labels, folds, replace(SETTINGS, selection="best-on-test"))
    first = train_folds(images, labels, folds, replace(SETTINGS, epochs=1))
    for chosen, final, early in zip(best, last, first, strict=True):
        count = [int((o.logits.argmax(1) == labels[o.test]).sum()) for o in (chosen, final, early)]
        assert count[0] >= max(count[1:])
        assert chosen.epoch <= 4
        np.testing.assert_array_equal(chosen.losses, final.losses)


def test_every_epoch_is_reported_and_grid_attention_trains_one_by_one(samples):
    images, labels, subjects = samples
    heard = []
    settings = replace(SETTINGS, epochs=2, config=replace(CONFIG, attention="grid"))
    assert not settings.stacks
    train_folds(images, labels, leave_one_out(subjects)[:2], settings, report=lambda epoch, loss: heard.append(epoch))
    assert heard == [1, 2, 1, 2]


def test_a_loss_that_explodes_is_named_with_its_subject(samples):
    images, labels, subjects = samples
    broken = images.copy()
    broken[:] = np.inf
    with pytest.raises(ModelError, match="loss of subject a is no longer finite; lower --lr"):
        train_folds(broken, labels, leave_one_out(subjects)[:1], SETTINGS)


def test_tf32_is_allowed_where_the_settings_say_so_and_only_while_training(samples, monkeypatch):
    images, labels, subjects = samples
    asked = []

    @contextmanager
    def listen(device, *, tf32):
        asked.append(tf32)
        yield

    monkeypatch.setattr(loso_train, "float32_on_cuda", listen)
    folds, once = leave_one_out(subjects)[:1], replace(SETTINGS, epochs=1)
    for config in (CONFIG, replace(CONFIG, attention="grid")):  # a stack, and one by one
        for tf32 in (False, True):
            train_folds(images, labels, folds, replace(once, config=config, tf32=tf32))
    assert asked == [False, True, False, True]


def test_folds_have_the_same_losses_on_every_device(samples, device):
    images, labels, subjects = samples
    folds = leave_one_out(subjects)
    for config in (CONFIG, replace(CONFIG, attention="block-full")):
        settings = replace(SETTINGS, config=config, selection="best-on-test")
        here, there = (train_folds(images, labels, folds, settings, device=where) for where in ("cpu", device))
        for one, other in zip(here, there, strict=True):
            np.testing.assert_allclose(other.losses, one.losses, rtol=1e-3)


@pytest.mark.parametrize(("config", "batch"), [(HTNetConfig(dim=24), 64), (HTNetConfig(dim=48, depths=(1, 1, 2)), 128)])
def test_the_estimated_memory_of_a_fold_is_what_a_step_holds(config, batch):
    stack = stack_of(config, [0, 1])
    trained = {value.untyped_storage().data_ptr(): value.untyped_storage() for value in stack.parameters.values()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    patches = torch.rand(2, batch, config.grid**2, 3 * config.patch_size**2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = stack(patches)
    assert logits.requires_grad
    held = 4 * sum(part.nbytes() for part in trained.values())
    held += sum(part.nbytes() for address, part in kept.items() if address not in trained)
    assert bytes_of_fold(config, batch) == pytest.approx(held / 2, rel=0.05)


def test_a_gpu_takes_the_folds_that_three_quarters_of_its_memory_hold(monkeypatch):
    memory = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert folds_at_once(HTNetConfig(), torch.device("cuda")) == 26
    assert folds_at_once(HTNetConfig(), torch.device("cuda"), batch_size=100_000) == 1
    assert folds_at_once(HTNetConfig(), torch.device("cpu")) == 1


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"selection": "best"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ModelError):
        LosoSettings(**settings)


def study_of(labels, subjects, datasets, **settings):
    return LosoStudy(
        model="HTNet",
        classes=CLASSES,
        names=np.array([f"n{row}" for row in range(len(labels))]),
        datasets=np.array(datasets),
        subjects=np.array(subjects),
        labels=np.array(labels),
        folds=leave_one_out(np.array(subjects)),
        settings={"epochs": 2, **settings},
        selection="last",
        epochs=2,
        published=HTNET_PUBLISHED,
    )


def outcomes_of(study, predicted):
    logits = np.eye(3, dtype=np.float32)[np.array(predicted)]
    return [
        FoldOutcome(fold.number, fold.subject, fold.test, logits[fold.test], np.array([1.0, 0.5]), 2, 0.1)
        for fold in study.folds
    ]


@pytest.fixture
def study():
    # subject b alone shows class 1, subject d alone class 2
    return study_of([0, 0, 1, 1, 0, 2], list("aabbcd"), ["SMIC"] * 4 + ["SAMM"] * 2)


def test_scores_are_pooled_over_folds_not_averaged(study):
    predicted = [0, 1, 1, 1, 0, 0]
    summary = summarize(study, outcomes_of(study, predicted))
    # by hand: class 0 TP 2 FP 1 FN 1, class 1 TP 2 FP 1 FN 0, class 2 TP 0 FN 1
    full = summary["scores"]["full"]
    assert full["uf1"] == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert full["uar"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    samm = scores(np.array([0, 2]), np.array([0, 0]), 3)
    assert summary["scores"]["SAMM"]["uf1"] == pytest.approx(samm.uf1)
    assert summary["scores"]["SMIC"]["recalls"] == [0.5, 1.0, None]
    assert summary["absent_in_training"] == {"b": ["positive"], "d": ["surprise"]}
    assert [row["right"] for row in summary["by_subject"]] == [1, 2, 1, 0]


def test_the_table_stands_beside_the_published_row(study):
    rows = table_rows(summarize(study, outcomes_of(study, [0] * 6)))
    assert rows[0] == ["", "samples", "UF1", "UAR", "published UF1", "UAR"]
    assert rows[1][0::4] == ["full", "0.8603"]
    assert rows[2][4:] == ["0.8049", "0.7905"]


def test_the_report_is_written_and_needs_every_sample_once(study, tmp_path):
    outcomes = outcomes_of(study, [0, 1, 1, 1, 0, 0])
    write_report(tmp_path, study, outcomes)
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    assert (tmp_path / "subjects.csv").read_text().splitlines()[1].startswith("a,SMIC,2,1,0.5")
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 7
    assert json.loads((tmp_path / "results.json").read_text())["selection_note"] == "last epoch of every subject"
    with pytest.raises(StorageError, match="4 samples where 6"):
        summarize(study, outcomes[:2])


def test_finished_folds_are_found_again_under_the_same_settings_only(study, tmp_path):
    outcome = outcomes_of(study, [0] * 6)[1]
    assert open_run(tmp_path, study) == {}
    save_outcome(tmp_path, outcome)
    (tmp_path / "folds" / ".003-c.json.77.part").write_text("{")  # what a killed run may leave
    found = open_run(tmp_path, study)
    assert list(found) == [1]
    np.testing.assert_array_equal(found[1].logits, outcome.logits)
    changed = study_of([0, 0, 1, 1, 0, 2], list("aabbcd"), ["SMIC"] * 4 + ["SAMM"] * 2, lr=1)
    with pytest.raises(StorageError, match="another lr; choose another --out, or drop it with --fresh"):
        open_run(tmp_path, changed)
    exact, tf32 = (
        study_of([0, 0, 1, 1, 0, 2], list("aabbcd"), ["SMIC"] * 4 + ["SAMM"] * 2, tf32=value) for value in (False, True)
    )
    assert list(open_run(tmp_path, exact)) == [1], "a run from before there was TF32 is one without"
    assert list(open_run(tmp_path, study)) == [1]
    with pytest.raises(StorageError, match="another tf32"):
        open_run(tmp_path, tf32)
    assert open_run(tmp_path, changed, fresh=True) == {}
    (tmp_path / "folds" / "001-a.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        open_run(tmp_path, changed)
