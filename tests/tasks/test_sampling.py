"""Batches: the published slots, and random numbers that belong to a clip of the global batch."""

import numpy as np
import pytest
import torch

from pthnet.slots import sample_slots
from pthnet.windows import LEVELS, SLOTS
from tasks.sampling import DeviceTable, Shard, epoch_order, generator_for, room_for_features
from tests.archives import feature_set

CPU = torch.device("cpu")


def test_evaluation_takes_the_published_windows() -> None:
    features = feature_set(clips=20)
    pyramid = DeviceTable(features, CPU).pyramid(torch.arange(20), LEVELS)
    for level in LEVELS:
        x, mask = pyramid[level]
        for clip in range(20):
            places = features.positions[level][slice(*features.position_offsets[level][clip : clip + 2])]
            chosen = places[sample_slots(len(places), SLOTS[level])]
            expected = features.features[features.offsets[clip] + chosen]
            np.testing.assert_array_equal(x[clip].T[mask[clip]].numpy(), expected)
            assert not x[clip].T[~mask[clip]].any()


def test_noise_reaches_padding_too() -> None:
    table = DeviceTable(feature_set(clips=20), CPU)
    x, mask = table.pyramid(torch.arange(20), ("high",), generator=generator_for("cpu", 0), noise=0.0005)["high"]
    padding = x.transpose(1, 2)[~mask]
    assert padding.std() == pytest.approx(0.0005, rel=0.1)


@pytest.mark.parametrize("sharers", [1, 2, 3, 4])
def test_trainings_that_share_a_gpu_leave_each_other_room_whoever_starts_first(sharers: int) -> None:
    total = 80 << 30
    at_once = [room_for_features(total, total, reserve=0.6, share=1 / sharers)] * sharers
    assert sum(at_once) <= 0.6 * total
    taken = 0.0
    for _ in range(sharers):
        mine = room_for_features(int(total - taken), total, reserve=0.6, share=1 / sharers)
        assert mine == pytest.approx(at_once[0])  # a late one is not worse off
        taken += mine
    assert room_for_features(1 << 30, total, reserve=0.6, share=1 / sharers) <= 0.6 * (1 << 30)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_of_a_batch_are_the_batch(world: int) -> None:
    table, rows = DeviceTable(feature_set(clips=20), CPU), torch.arange(11)
    whole = table.pyramid(rows, LEVELS, generator=generator_for("cpu", 3), noise=0.1)
    parts = [
        table.pyramid(rows, LEVELS, generator=generator_for("cpu", 3), noise=0.1, keep=Shard(rank, world).slice(11))
        for rank in range(world)
    ]
    for level in LEVELS:
        assert torch.equal(torch.cat([part[level][0] for part in parts]), whole[level][0])
        assert torch.equal(torch.cat([part[level][1] for part in parts]), whole[level][1])


def test_shards_cover_every_batch_once() -> None:
    for count in range(40):
        for world in range(1, 9):
            rows = [row for rank in range(world) for row in range(count)[Shard(rank, world).slice(count)]]
            assert rows == list(range(count))


def test_an_epoch_meets_every_clip_once_in_an_order_of_its_own() -> None:
    rows, labels = np.arange(100, 200), np.arange(100) % 3
    first, second = (epoch_order(rows, labels, False, 0, epoch) for epoch in (0, 1))
    assert sorted(first) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(rows, labels, False, 0, 0).tolist()


def test_balanced_sampling_meets_rare_classes_as_often_as_common_ones() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    order = epoch_order(np.arange(1000), labels, True, 0)
    counts = np.bincount(labels[order])
    assert counts.min() > 280
    assert counts.sum() == 1000


def test_generators_of_neighbouring_epochs_are_unrelated() -> None:
    draws = {float(torch.rand((), generator=generator_for("cpu", 0, epoch))) for epoch in range(100)}
    assert len(draws) == 100
