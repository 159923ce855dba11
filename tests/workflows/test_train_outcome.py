"""From trained states to scores: what is fused, and that the alternatives to every choice are kept beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pthnet.benchmarks import Benchmark, Fold
from tasks.checkpoints import TrainState
from tasks.feature_set import Split
from tasks.splits import Census
from workflows.train import TrainRequest
from workflows.train_data import TrainData
from workflows.train_outcome import fuse_folds

LABELS = np.arange(12) % 3
SPLITS = [
    Split(fold="1", train=np.arange(3), validation=np.arange(3, 6), test=np.arange(6, 12)),
    Split(fold="2", train=np.arange(6, 9), validation=np.arange(9, 12), test=np.arange(6)),
]
DATA = TrainData(
    benchmark=Benchmark(name="lab", classes=("a", "b", "c"), folds=(Fold(1, "x", "y"), Fold(2, "x", "y"))),
    folds=[],
    census=Census(clip_ids=np.array([f"{index:02d}" for index in range(12)]), labels=LABELS, splits=SPLITS),
    extractor="e",
    spec={},
    weights="",
    dim=4,
    version=0,
    facts={},
    notes=[],
    listed=[],
)
REQUEST = TrainRequest(features="none")


def states(*, last: bool = False) -> dict[str, TrainState]:
    """Forward always wrong, reverse always right."""
    made = {}
    for split in SPLITS:
        for direction, shift in (("forward", 1), ("reverse", 0)):
            logits = {
                name: torch.from_numpy(np.eye(3, dtype=np.float32)[(LABELS[rows] + shift) % 3])
                for name, rows in (("validation", split.validation), ("test", split.test))
            }
            if last:
                logits["last"] = logits["test"].roll(1, 1)
            made[f"fold-{split.fold}-{direction}"] = TrainState(epoch=5, selected_epoch=4, logits=logits)
    return made


def right(result: Any, system: str) -> float:
    return float((result.logits[system].argmax(1) == result.target).mean())


def test_a_fixed_mu_is_shown_beside_the_one_validation_would_choose() -> None:
    results = fuse_folds(REQUEST, DATA, states())
    assert [result.mu for result in results] == [0.7, 0.7]
    assert [right(result, "fused") for result in results] == [0, 0]
    assert [right(result, "fused, mu from validation") for result in results] == [1, 1]


def test_a_chosen_mu_is_shown_beside_the_published_one() -> None:
    for result in fuse_folds(replace(REQUEST, mu="validation"), DATA, states()):
        assert result.mu < 0.5
        assert right(result, "fused") == 1
        assert right(result, "fused, mu 0.70") == 0


def test_a_chosen_epoch_is_shown_beside_the_last_one() -> None:
    for result in fuse_folds(REQUEST, DATA, states(last=True)):
        assert "fused, last epoch" in result.logits
        assert result.epochs == {"forward": 4, "reverse": 4}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_one_direction_is_its_own_fusion(direction: str) -> None:
    only = replace(REQUEST, directions=(direction,))  # type: ignore[arg-type]
    for result in fuse_folds(only, DATA, states()):
        assert list(result.logits) == [direction, "fused"]
        np.testing.assert_array_equal(result.logits["fused"], result.logits[direction])


def test_answers_belong_to_the_test_clips_of_their_fold() -> None:
    first, second = fuse_folds(REQUEST, DATA, states())
    assert first.clip_ids.tolist() == [f"{index:02d}" for index in range(6, 12)]
    assert second.target.tolist() == LABELS[:6].tolist()
