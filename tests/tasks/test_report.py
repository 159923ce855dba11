"""The final numbers: per fold, mean, pooled, intervals, floor and published rows."""

import numpy as np
import pytest

from pthnet.benchmarks import find_benchmark
from pthnet.metrics import scores
from tasks.report import FoldResult, published_rows, summarize, table_rows

CLASSES = ("a", "b", "c")


def result(fold: str, seed: int, clips: int = 60) -> FoldResult:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, clips)
    good = (2 * np.eye(3)[target] + rng.normal(size=(clips, 3))).astype(np.float32)
    logits = {"forward": good, "reverse": rng.normal(size=(clips, 3)).astype(np.float32), "fused": good}
    return FoldResult(
        fold=fold,
        clip_ids=np.arange(clips).astype(str),
        target=target,
        train_labels=np.array([1, 1, 0]),
        logits=logits,
        mu=0.7,
        epochs={"forward": 3, "reverse": 3},
    )


def test_pooled_is_over_all_predictions_and_mean_over_folds() -> None:
    folds = [result("1", 0, 30), result("2", 1, 90)]
    found = summarize(folds, CLASSES)["systems"]["forward"]
    target = np.concatenate([fold.target for fold in folds])
    predicted = np.concatenate([fold.logits["forward"].argmax(1) for fold in folds])
    assert found["pooled"]["war"] == pytest.approx(scores(target, predicted, 3).war)
    each = [found["folds"][name]["uar"] for name in ("1", "2")]
    assert found["mean"]["uar"] == pytest.approx(np.mean(each))
    assert found["std"]["uar"] == pytest.approx(np.std(each))
    low, high = found["interval"]["uar"]
    assert low < found["pooled"]["uar"] < high


def test_the_floor_answers_the_commonest_training_class() -> None:
    fold = result("1", 0)
    floor = summarize([fold], CLASSES)["majority"]["pooled"]
    assert floor["war"] == pytest.approx((fold.target == 1).mean())
    assert floor["uar"] == pytest.approx(1 / 3)


def test_a_class_without_test_clips_has_no_recall() -> None:
    fold = result("1", 0)
    fold.target[fold.target == 2] = 0
    assert summarize([fold], CLASSES)["systems"]["fused"]["recalls"]["c"] is None


def test_the_table_of_folds_ends_beside_the_published_rows() -> None:
    published = published_rows(find_benchmark("DFEW"))
    rows = table_rows(summarize([result("1", 0), result("2", 1)], CLASSES), published, ("forward", "reverse", "fused"))
    names = [row[0].strip() for row in rows]
    assert names[:5] == ["fold 1", "fold 2", "mean of folds", "deviation", "pooled"]
    assert names[5:] == [
        "95 % of WAR",
        "95 % of UAR",
        "majority class",
        "published, whole frame *",
        "published, faces *",
    ]
    assert rows[-1][3] == "70.85 / 62.28"


def test_scores_that_are_not_public_are_not_printed() -> None:
    assert published_rows(find_benchmark("RAVDESS")) == {}
