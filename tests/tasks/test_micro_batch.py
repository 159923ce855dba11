"""The micro-batch grows while that pays, stays within memory, and is looked for once."""

from pathlib import Path

import torch

from pthnet.backbone import build_backbone
from tasks.micro_batch import fastest, micro_batch_of, remembered


def test_it_grows_while_that_pays() -> None:
    rates = {8: 10.0, 16: 18.0, 32: 25.0, 64: 25.2, 128: 24.0}
    assert fastest(rates.__getitem__, tuple(rates)) == 32


def test_a_size_that_measured_slow_by_chance_ends_nothing() -> None:
    rates = {8: 10.0, 16: 9.0, 32: 25.0}
    assert fastest(rates.__getitem__, tuple(rates)) == 32


def test_features_of_zeros_have_a_micro_batch_too() -> None:
    backbone = build_backbone("null", micro_batch=8)
    assert micro_batch_of(backbone) == 8


def test_it_stays_within_memory() -> None:
    def rate(size: int) -> float:
        if size > 16:
            raise torch.OutOfMemoryError
        return float(size)

    assert fastest(rate) == 16


def test_it_is_found_once_per_device(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "micro_batch.json"
    looked = []

    def find() -> int:
        looked.append(1)
        return 32

    assert [remembered("one", find, path) for _ in range(3)] == [32] * 3
    assert remembered("another", find, path) == 32
    assert len(looked) == 2


def test_a_damaged_memory_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "micro_batch.json"
    path.write_text("{")
    assert remembered("one", lambda: 16, path) == 16
    assert remembered("one", lambda: 99, path) == 16


def test_an_unwritable_memory_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert remembered("one", lambda: 16, tmp_path / "file" / "micro_batch.json") == 16
