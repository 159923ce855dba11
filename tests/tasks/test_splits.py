"""From lists to folds: one numbering, honest hold-outs, and overlaps said aloud."""

import numpy as np
import pytest

from pthnet.benchmarks import find_benchmark, overlap
from pthnet.errors import ModelError
from tasks.splits import FoldLists, ListedCounts, census, count_line, overlap_line


def fold(train: dict[str, int], test: dict[str, int], name: str = "1") -> FoldLists:
    return FoldLists(
        name=name,
        train_ids=np.array(list(train)),
        train_labels=np.array(list(train.values())),
        test_ids=np.array(list(test)),
        test_labels=np.array(list(test.values())),
    )


def test_folds_are_positions_in_one_numbering() -> None:
    first, second = fold({"b": 1, "a": 0}, {"c": 2}), fold({"c": 2}, {"a": 0, "b": 1}, "2")
    counted = census([first, second])
    assert counted.clip_ids.tolist() == ["a", "b", "c"]
    assert counted.labels.tolist() == [0, 1, 2]
    assert counted.splits[0].train.tolist() == [1, 0]
    assert counted.splits[1].test.tolist() == [0, 1]
    assert not len(counted.splits[0].validation)


def test_a_clip_with_two_labels_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="1 clips have two labels in the lists, first a: 0 and 2"):
        census([fold({"a": 0}, {"b": 1}), fold({"b": 1}, {"a": 2}, "2")])


def test_the_hold_out_takes_its_share_of_every_class_and_never_a_test_clip() -> None:
    train = {f"clip{index}": index % 4 for index in range(200)}
    split = census([fold(train, {"test": 0})], validation=0.1).splits[0]
    labels = np.array([train[name] for name in sorted(train)] + [0])
    assert np.bincount(labels[split.validation]).tolist() == [5, 5, 5, 5]
    assert len(np.intersect1d(split.train, split.validation)) == 0
    assert len(split.train) == 180


def test_whole_subjects_are_held_out_where_names_carry_one() -> None:
    train = {f"s{subject}_{take}": take % 2 for subject in range(10) for take in range(8)}
    counted = census([fold(train, {"x": 0})], validation=0.2, subject_of=lambda clip: clip.split("_")[0])
    split = counted.splits[0]
    held = {clip.split("_")[0] for clip in counted.clip_ids[split.validation]}
    kept = {clip.split("_")[0] for clip in counted.clip_ids[split.train]}
    assert held
    assert not held & kept


def test_a_class_of_one_clip_stays_in_training() -> None:
    split = census([fold({"a": 0, "b": 0, "c": 1}, {"x": 0})], validation=0.5).splits[0]
    assert len(split.validation) == 1
    assert 2 in split.train


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ModelError, match="validation is a share"):
        census([fold({"a": 0, "b": 1}, {"c": 0})], validation=share)


def test_twins_of_one_recording_are_said_aloud() -> None:
    train, test = ["01-01-03-01-01-01-05", "01-01-04-01-01-01-06"], ["02-01-03-01-01-01-05", "02-01-04-01-01-01-09"]
    line = overlap_line("1", overlap(find_benchmark("RAVDESS"), train, test))
    assert "1 recordings in both train and test (50.0 % of the test clips" in line
    assert "1 subjects" in line


def test_disjoint_lists_need_no_word() -> None:
    assert overlap_line("1", overlap(find_benchmark("DFEW"), ["a"], ["b"])) == ""


def test_a_fold_without_any_extracted_test_clip_is_refused() -> None:
    with pytest.raises(ModelError, match="none of the test clips has features"):
        fold({"a": 0}, {"b": 1}).keep(np.array(["a"]))


def test_counts_that_are_not_the_tables_are_said_aloud() -> None:
    listed = ListedCounts(path="list", unit="high", clip_ids=np.array(["b", "a", "z"]), counts=np.array([5, 3, 9]))
    line = count_line(listed, np.array(["a", "b", "c"]), np.array([3, 4, 1]))
    assert line.startswith("list: 1 of 2 clips have another number of windows at the high level than the list says")
    assert "first: b, listed 5, found 4" in line
    assert count_line(listed, np.array(["a", "b"]), np.array([3, 5])) == ""
