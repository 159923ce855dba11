"""Slot sampling: the published choice, one clip or a batch, and how slots are filled."""

import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pthnet.slots import NOISE, fill_slots, level_windows, sample_slots, sample_slots_batch

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS = st.sampled_from([4, 8, 12, 16, 20])


def test_evaluation_takes_the_published_windows() -> None:
    golden = json.loads((GOLDEN / "temporal_sampling_test.json").read_text())
    for key, expected in golden.items():
        windows, slots = map(int, key.split(","))
        wanted = list(range(windows)) if windows < slots else expected
        assert sample_slots(windows, slots).tolist() == wanted, key


@given(windows=st.integers(1, 1_000_000), slots=SLOTS, seed=st.none() | st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_samples_are_windows_of_the_clip_in_order(windows: int, slots: int, seed: int | None) -> None:
    index = sample_slots(windows, slots, None if seed is None else np.random.default_rng(seed))
    assert index.dtype == np.int64
    assert len(index) == min(windows, slots)
    assert index[0] >= 0
    assert index[-1] < windows
    assert (np.diff(index) > 0).all()


@given(counts=st.lists(st.integers(1, 1_000_000), min_size=1, max_size=30), slots=SLOTS)
@settings(max_examples=200, deadline=None)
def test_a_batch_samples_as_its_clips_do_alone(counts: list[int], slots: int) -> None:
    index, mask = sample_slots_batch(torch.tensor(counts), slots)
    for row, valid, windows in zip(index, mask, counts, strict=True):
        assert row[valid].tolist() == sample_slots(windows, slots).tolist()
        assert (row[~valid] == 0).all()


def test_a_batch_agrees_with_single_clips_for_every_small_count_and_up_to_a_million() -> None:
    counts = np.unique(
        np.concatenate([np.arange(1, 2000), np.random.default_rng(0).integers(1, 1_000_001, 2000), [1_000_000]])
    )
    for slots in (4, 8, 16):
        index, _ = sample_slots_batch(torch.from_numpy(counts), slots)
        for row, windows in zip(index.numpy(), counts.tolist(), strict=True):
            alone = sample_slots(windows, slots)
            assert (row[: len(alone)] == alone).all()


@given(counts=st.lists(st.integers(1, 5000), min_size=1, max_size=20), slots=SLOTS, seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_training_draws_of_a_batch_stay_in_their_stretches(counts: list[int], slots: int, seed: int) -> None:
    n = torch.tensor(counts)
    index, mask = sample_slots_batch(n, slots, torch.Generator().manual_seed(seed))
    again, _ = sample_slots_batch(n, slots, torch.Generator().manual_seed(seed))
    assert torch.equal(index, again)
    for row, valid, windows in zip(index.numpy(), mask, counts, strict=True):
        if windows < slots:
            assert row[valid].tolist() == list(range(windows))
        else:
            edges = [round(windows / slots * i) for i in range(slots + 1)]
            assert all(low <= got < high for got, low, high in zip(row, edges[:-1], edges[1:], strict=True))


def test_training_draws_reach_every_window() -> None:
    generator = torch.Generator().manual_seed(0)
    index, _ = sample_slots_batch(torch.full((500,), 37), 16, generator)
    assert set(index.flatten().tolist()) == set(range(37))
    single = np.random.default_rng(0)
    assert {i for _ in range(300) for i in sample_slots(37, 16, single).tolist()} == set(range(37))


def test_slots_hold_the_windows_of_their_own_clip_and_zero_padding() -> None:
    windows = torch.tensor([3, 10, 5])
    first = torch.cat([torch.zeros(1, dtype=torch.int64), windows.cumsum(0)])
    features = torch.arange(18.0)[:, None].repeat(1, 2)
    # the level keeps every second window of each clip
    kept = [torch.arange(0, int(n), 2, dtype=torch.int32) for n in windows]
    offsets = torch.tensor([0, *np.cumsum([len(k) for k in kept]).tolist()])
    rows, mask = level_windows(torch.tensor([2, 0]), first, torch.cat(kept), offsets, 4)
    x, mask = fill_slots(features, rows, mask)
    assert x.shape == (2, 2, 4)
    assert x[0, 0].tolist() == [13, 15, 17, 0]
    assert x[1, 1].tolist() == [0, 2, 0, 0]
    assert mask.tolist() == [[True, True, True, False], [True, True, False, False]]


def test_training_noise_falls_on_every_slot_padding_included() -> None:
    rows, mask = torch.zeros(8, 16, dtype=torch.int64), torch.zeros(8, 16, dtype=torch.bool)
    x, _ = fill_slots(torch.zeros(1, 64), rows, mask, noise=NOISE, generator=torch.Generator().manual_seed(1))
    assert (x != 0).all()
    assert abs(x.std().item() / NOISE - 1) < 0.05
