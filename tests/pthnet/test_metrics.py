import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pthnet.errors import ModelError
from pthnet.metrics import (
    METRICS,
    bootstrap_interval,
    fold_scores,
    majority_baseline,
    reliability,
    scores,
)

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_scores_agree_with_scikit_learn(pairs):
    target, predicted = np.array(pairs).T
    found = scores(target, predicted, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on classes that were only predicted
        assert found.war == pytest.approx(sk.accuracy_score(target, predicted))
        assert found.uar == pytest.approx(sk.balanced_accuracy_score(target, predicted))
        assert found.weighted_f1 == pytest.approx(sk.f1_score(target, predicted, average="weighted"))
        assert found.macro_f1 == pytest.approx(sk.f1_score(target, predicted, average="macro"))
        every_class = sk.f1_score(target, predicted, average="macro", labels=range(5), zero_division=0)
        assert found.uf1 == pytest.approx(every_class)
        assert np.array_equal(found.confusion, sk.confusion_matrix(target, predicted, labels=range(5)))
    present = np.unique(target)
    recalls = sk.recall_score(target, predicted, labels=present, average=None)
    assert found.recalls[present] == pytest.approx(recalls)
    assert np.isnan(np.delete(found.recalls, present)).all()


def test_scores_cannot_be_altered_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores(np.array([0]), np.array([0]), 1).war = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("target", "predicted"), [([], []), ([0, 1], [0]), ([0, 7], [0, 1]), ([0, -1], [0, 1]), ([0.0, 1.0], [0, 1])]
)
def test_labels_that_cannot_be_scored_are_refused(target, predicted):
    with pytest.raises(ModelError, match="found"):
        scores(np.array(target), np.array(predicted), 7)


@pytest.mark.parametrize("metric", METRICS)
def test_the_bootstrap_on_counts_is_the_bootstrap_on_clips(metric):
    rng = np.random.default_rng(1)
    target = rng.integers(0, 3, 300)
    predicted = np.where(rng.random(300) < 0.6, target, rng.integers(0, 3, 300))
    found = bootstrap_interval(target, predicted, metric, n=4000, seed=5)
    assert found == bootstrap_interval(target, predicted, metric, n=4000, seed=5)
    rows = rng.integers(0, 300, (1000, 300))
    slow = [getattr(scores(target[r], predicted[r], 3), metric) for r in rows]
    assert found.low < found.value == getattr(scores(target, predicted, 3), metric) < found.high
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)


def test_more_clips_make_a_narrower_interval():
    target = np.arange(100) % 4
    predicted = np.where(np.arange(100) % 3 == 0, 0, target)
    few, many = (bootstrap_interval(np.tile(target, k), np.tile(predicted, k)) for k in (1, 25))
    assert (many.high - many.low) * 3 < few.high - few.low
    with pytest.raises(ModelError, match="metric must be one of"):
        bootstrap_interval(target, predicted, "auc")


def test_folds_are_reported_each_on_average_and_pooled():
    easy = (np.array([0, 1, 1, 1]), np.array([0, 1, 1, 1]))
    hard = (np.array([0, 0]), np.array([0, 1]))
    found = fold_scores([easy, hard], 2)
    assert [fold.war for fold in found.folds] == [1.0, 0.5]
    assert (found.mean["war"], found.std["war"]) == (0.75, 0.25)
    assert found.pooled.war == pytest.approx(5 / 6)
    with pytest.raises(ModelError, match="at least one fold"):
        fold_scores([], 2)


def test_the_majority_baseline_answers_the_most_frequent_training_class():
    found = majority_baseline(np.array([2, 2, 1]), np.array([2, 0, 1, 2]), 3)
    assert (found.war, found.uar) == (0.5, pytest.approx(1 / 3))


def test_reliability_measures_overconfidence():
    probabilities = np.tile([0.9, 0.1], (10, 1))
    found = reliability(np.array([0] * 6 + [1] * 4), probabilities, bins=10)
    assert found.ece == pytest.approx(0.3)
    assert found.count.tolist() == [0] * 8 + [10, 0]
    assert found.accuracy[8] == pytest.approx(0.6)
    assert reliability(np.array([0, 1]), np.eye(2)).ece == 0
    with pytest.raises(ModelError, match="apply a softmax"):
        reliability(np.array([0]), np.array([[3.0, -1.0]]))
