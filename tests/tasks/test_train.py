"""Training one network: golden losses, worker counts that change nothing, and going on as if never stopped."""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pthnet.errors import ModelError
from pthnet.pth_net import PTHNetConfig
from tasks.checkpoints import TrainState, load_state, save_state
from tasks.feature_set import Split
from tasks.sampling import DeviceTable, Shard
from tasks.shard_loss import inverse_frequency
from tasks.train import build_model, train
from tasks.train_settings import TrainSettings
from tests.archives import feature_set

TINY = PTHNetConfig(in_dim=16, dim=16, mlp_dim=16, num_classes=3)
FEATURES = feature_set()
SPLIT = Split(fold="1", train=np.arange(36), validation=np.arange(36, 46), test=np.arange(46, 60))
BASE = TrainSettings(model=TINY, epochs=4, milestones=(2,), lr=0.05)


def run(settings: TrainSettings = BASE, **options: Any) -> TrainState:
    table = DeviceTable(FEATURES, torch.device(options.pop("device", "cpu")))
    return train(FEATURES, options.pop("split", SPLIT), settings, table=table, **options)


def test_the_defaults_are_the_published_procedure() -> None:
    settings = TrainSettings(model=PTHNetConfig())
    assert (settings.lr, settings.momentum, settings.weight_decay, settings.batch) == (0.005, 0.9, 1e-4, 32)
    assert (settings.epochs, settings.noise, settings.selection, settings.loss) == (20, 0.0005, "last", "pyramid")
    rates = [settings.rate(epoch) for epoch in range(20)]
    np.testing.assert_allclose(rates, np.repeat([5e-3, 5e-4, 5e-5, 5e-6], 5))


def test_it_learns(device: str) -> None:
    state = run(replace(BASE, epochs=8, milestones=()), device=device)
    assert state.history[-1]["loss"] < 0.6 * state.history[0]["loss"]
    assert state.history[-1]["test_uar"] > 0.6
    assert state.logits["test"].shape == (14, 3)


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    first, second = run(), run()
    other = run(replace(BASE, seed=1))
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    assert not torch.equal(first.model["head.weight"], other.model["head.weight"])


@pytest.mark.parametrize("changes", [{}, {"selection": "validation", "ema": 0.9, "balanced": True}])
def test_going_on_from_a_checkpoint_is_bit_for_bit_as_never_stopped(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = replace(BASE, **changes)

    def save(state: TrainState) -> None:
        if state.epoch == 2:
            save_state(tmp_path, state)

    whole = run(settings, on_epoch=save)
    resumed = run(settings, state=load_state(tmp_path))
    assert resumed.epoch == whole.epoch == 4
    for group in ("model", "momentum", "ema", "selected", "logits"):
        ours, theirs = getattr(resumed, group), getattr(whole, group)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), group
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in whole.history]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, run(replace(BASE, epochs=1)))
    with pytest.raises(ModelError, match=r"began with other settings \(epochs, lr\)"):
        run(replace(BASE, lr=0.01), state=load_state(tmp_path))


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, run(replace(BASE, epochs=1)))
    tensors = tmp_path / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no whole training state"):
        load_state(tmp_path)


def _one_worker(rank: int, world: int, port: int, settings: TrainSettings, rows: np.ndarray, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    split = replace(SPLIT, train=rows)
    state = run(settings, split=split, shard=Shard(rank, world), wrap=nn.parallel.DistributedDataParallel)
    if rank == 0:
        save_state(out, state)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        # one batch an epoch, so that an epoch's loss is a step's; 33 clips make a last batch of a single one
        (np.arange(32), {}),
        (
            np.arange(33),
            {"loss": "ecstfl", "gamma": 1.0, "class_weights": True, "epochs": 3, "levels": ("middle", "low")},
        ),
    ],
)
def test_two_workers_give_the_losses_of_one(tmp_path: Path, rows: np.ndarray, changes: dict[str, Any]) -> None:
    import socket

    settings = replace(BASE, **({"epochs": 10, "milestones": (5,)} | changes), lr=0.005, model=replace(TINY, dim=64))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        _one_worker, args=(2, port, settings, rows, tmp_path), nprocs=2, start_method="fork"
    )
    alone, together = run(settings, split=replace(SPLIT, train=rows)), load_state(tmp_path)
    for ours, theirs in zip(together.history, alone.history, strict=True):
        for name in ("loss", "ce", "train_war", "validation_uar", "test_uar"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (name, ours["epoch"])


def test_bf16_stays_within_one_per_cent_of_fp32() -> None:
    settings = TrainSettings(model=replace(TINY, dim=64, mlp_dim=64), epochs=3)
    full, half = (run(replace(settings, precision=precision)) for precision in ("fp32", "bf16"))
    for ours, theirs in zip(half.history, full.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)


RECORDED = replace(BASE, lr=0.005, batch=4, ema=0.9, balanced=True, model=replace(TINY, dim=64, drop_path=0.2))


@pytest.mark.parametrize(
    "changes", [{}, {"loss": "ecstfl", "gamma": 1.0, "class_weights": True}, {"precision": "bf16"}]
)
def test_steps_that_are_replayed_are_those_that_run_one_by_one(device: str, changes: dict[str, Any]) -> None:
    table = DeviceTable(FEATURES, torch.device(device))
    settings = replace(RECORDED, **changes)
    replayed, single = (train(FEATURES, SPLIT, settings, table=table, replay=replay) for replay in (True, False))
    for ours, theirs in zip(replayed.history, single.history, strict=True):
        # to rounding: on a GPU some sums are added in another order each time
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2 if settings.precision == "bf16" else 1e-4)
    if settings.precision == "fp32":
        for group in ("model", "ema"):
            for name, value in getattr(single, group).items():
                torch.testing.assert_close(getattr(replayed, group)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_steps_that_cannot_be_recorded_run_one_by_one(device: str) -> None:
    class Waiting(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *given: Any) -> Any:
            loss, share = self.module(*given)
            loss.item()  # the host reads a number, which no record can wait for
            return loss, share

    table = DeviceTable(FEATURES, torch.device(device))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        waited = train(FEATURES, SPLIT, RECORDED, table=table, wrap=Waiting)
    assert any("steps run one by one" in str(one.message) for one in said) == (device == "cuda")
    single = train(FEATURES, SPLIT, RECORDED, table=table, replay=False)
    assert waited.history[-1]["loss"] == pytest.approx(single.history[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("levels", [("high",), ("middle", "low"), ("low",)])
def test_any_levels_train_and_the_finest_decides(levels: tuple[str, ...]) -> None:
    settings = replace(BASE, levels=levels, epochs=2)
    assert settings.level == levels[0]
    state = run(settings)
    assert np.isfinite(state.history[-1]["loss"])
    untouched = build_model(settings, FEATURES, SPLIT.train).state_dict()
    idle = [name for name in untouched if ".high." in name and "high" not in levels]
    assert all(torch.equal(state.model[name], untouched[name]) for name in idle)


def test_the_best_validation_epoch_is_kept_and_the_last_one_is_reported_beside_it() -> None:
    state = run(replace(BASE, epochs=6, lr=0.2, selection="validation"))
    scores = [record["validation_uar"] for record in state.history]
    assert state.selected_epoch == 1 + int(np.argmax(scores))
    assert set(state.logits) == {"validation", "test", "last"}
    assert state.weights is state.selected


def test_patience_stops_a_training_that_no_longer_gets_better() -> None:
    state = run(replace(BASE, epochs=40, lr=0.2, selection="validation", patience=2))
    assert state.epoch < 40
    assert state.epoch == state.selected_epoch + 2


def test_class_weights_are_inverse_to_frequency_with_mean_one() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    weights = inverse_frequency(labels, 3)
    assert weights[1] == pytest.approx(4 * weights[0])
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[2] == 0


def test_a_diverging_training_is_stopped_with_advice() -> None:
    with pytest.raises(ModelError, match="not finite in epoch 1; lower the learning rate"):
        run(replace(BASE, lr=1e30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "best"}, "selection must be last, validation or best-on-test"),
        ({"levels": ("top",)}, "levels must be high, middle or low"),
        ({"levels": ()}, "levels must be"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"ema": 1.0}, "ema is a decay"),
        ({"patience": 3}, "patience needs a score to watch"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(BASE, **changes)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match="16 numbers a window and the model expects 8"):
        run(replace(BASE, model=replace(TINY, in_dim=8)))


def test_standardisation_is_kept_in_the_weights() -> None:
    settings = replace(BASE, model=replace(TINY, standardize=True), epochs=1)
    state = run(settings)
    np.testing.assert_allclose(state.model["feature_mean"].numpy(), FEATURES.standardization(SPLIT.train)[0], atol=1e-6)
