"""Smooth predicting and the cascade, by hand and against the definition spelled out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pthnet.cascade import ABAW, ClassMap, cascade, cascade_probabilities, class_map, smooth
from pthnet.errors import ModelError


def column(*values):
    return np.array(values, float)[:, None]


def test_five_frames_by_hand():
    got = smooth(column(1, 2, 3, 4, 10), w=2)
    # means: (1+2+3)/3, (1+2+3+4)/4, (1+2+3+4+10)/5, (2+3+4+10)/4, (3+4+10)/3
    np.testing.assert_allclose(got, column(1 + 2, 2 + 2.5, 3 + 4, 4 + 4.75, 10 + 17 / 3))


def test_videos_are_never_mixed():
    ids, lengths = ["a", "a", "b", "b", "b"], [2, 3]
    by_hand = column(1 + 2, 3 + 2, 100 + 200, 200 + 200, 300 + 200)
    logits = column(1, 3, 100, 200, 300)
    np.testing.assert_allclose(smooth(logits, ids), by_hand)
    np.testing.assert_allclose(smooth(logits, lengths=lengths), by_hand)
    np.testing.assert_allclose(smooth(logits, lengths), by_hand)


def test_frames_without_a_face_are_left_out_of_the_mean_and_get_the_mean_of_their_neighbours():
    got = smooth(column(1, np.nan, 5, 7), present=[True, False, True, True], w=1)
    np.testing.assert_allclose(got, column(1 + 1, 3, 5 + 6, 7 + 6))


def test_a_window_without_any_face_gives_zeros():
    got = smooth(column(9, np.inf, np.nan), present=[False] * 3, w=2)
    np.testing.assert_array_equal(got, column(0, 0, 0))


def test_a_window_of_no_neighbours_doubles_the_outputs():
    np.testing.assert_allclose(smooth(column(1, -2), w=0), column(2, -4))


def test_a_window_wider_than_the_video_takes_its_mean():
    np.testing.assert_allclose(smooth(column(0, 4), w=50), column(2, 6))


def test_nothing_in_nothing_out():
    assert smooth(np.zeros((0, 5)), []).shape == (0, 5)
    assert cascade(np.zeros((0, 5)), np.zeros((0, 4))).shape == (0,)
    assert cascade_probabilities(np.zeros((0, 5)), np.zeros((0, 4))).shape == (0, 8)


def test_tensors_stay_tensors():
    got = smooth(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    assert torch.equal(got, torch.tensor([[3.0], [5.0]], dtype=torch.float64))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), w=st.integers(0, 4), videos=st.lists(st.integers(0, 7), max_size=5))
def test_smoothing_is_its_definition(data, w, videos):
    n = sum(videos)
    ids = np.repeat(np.arange(len(videos)), videos)
    face = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    logits = np.random.default_rng(n).normal(size=(n, 3)) * 1e3
    wanted = np.zeros((n, 3))
    for i in range(n):
        seen = [j for j in range(max(0, i - w), min(n, i + w + 1)) if ids[j] == ids[i] and face[j]]
        if seen:
            wanted[i] = np.mean(logits[seen], axis=0) + (logits[i] if face[i] else 0)
    np.testing.assert_allclose(smooth(logits, ids, face, w), wanted, rtol=1e-12, atol=1e-9)


def test_the_maps_are_the_papers():
    assert ABAW.coarse == (0, 4, 4, 4, 1, 4, 2, 3)
    assert ABAW.fine == (-1, 0, 1, 2, -1, 3, -1, -1)
    every = [*range(8), -1]
    assert ABAW.labels(every, "coarse").tolist() == [0, 4, 4, 4, 1, 4, 2, 3, -1]
    assert ABAW.labels(every, "negative").tolist() == [-1, 0, 1, 2, -1, 3, -1, -1, -1]
    assert ABAW.labels(every).tolist() == every


def test_the_cascade_by_hand():
    coarse = np.eye(5)[[0, 1, 2, 3, 4, 4, 4, 4]]
    negative = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    assert cascade(coarse, negative).tolist() == [0, 4, 6, 7, 1, 2, 3, 5]


def test_perfect_networks_give_perfect_labels():
    labels = np.arange(8)
    coarse = np.eye(5)[ABAW.labels(labels, "coarse")]
    negative = np.eye(4)[np.maximum(ABAW.labels(labels, "negative"), 0)]
    assert cascade(coarse, negative).tolist() == labels.tolist()


def test_the_probabilistic_form_by_hand_and_where_it_differs():
    coarse, negative = np.log([[0.3, 0.1, 0.1, 0.1, 0.4]]), np.log([[0.25, 0.25, 0.25, 0.25]])
    got = cascade_probabilities(coarse, negative)
    np.testing.assert_allclose(got, [[0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    assert got.argmax() == 0  # Neutral, although
    assert cascade(coarse, negative).tolist() == [1]  # the coarse network says Negative


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_probabilities_sum_to_one_and_agree_with_the_cascade_outside_the_group(seed):
    rng = np.random.default_rng(seed)
    coarse, negative = rng.normal(size=(20, 5)) * 3, rng.normal(size=(20, 4)) * 3
    p = cascade_probabilities(coarse, negative)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    single = coarse.argmax(axis=1) != ABAW.group
    assert (p.argmax(axis=1) == cascade(coarse, negative))[single].all()


def test_other_groupings_work():
    two = ClassMap(
        classes=("Calm", "Sad", "Angry"), coarse_names=("Bad", "Calm"), coarse=(1, 0, 0), group=0,
        group_names=("Angry", "Sad"), fine=(-1, 1, 0),
    )  # fmt: skip
    got = cascade([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], classes=two)
    assert got.tolist() == [2, 1, 0]


def test_groupings_follow_from_the_class_names():
    assert class_map(ABAW.coarse_names, "Negative", ABAW.group_names) is ABAW
    made = class_map(["Bad", "Calm", "Glad"], "Bad", ["Angry", "Sad"])
    assert made.classes == ("Calm", "Glad", "Angry", "Sad")
    assert cascade(np.eye(3), [[0.0, 1.0]] * 3, classes=made).tolist() == [3, 0, 1]
    with pytest.raises(ModelError, match="no class 'Worse'"):
        class_map(["Bad", "Calm"], "Worse", ["a"])
    with pytest.raises(ModelError, match="in both networks"):
        class_map(["Bad", "Calm"], "Bad", ["Calm", "Sad"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: smooth(np.zeros((3, 2)), ["a", "b", "a"]), "do not stand together"),
        (lambda: smooth(np.zeros((3, 2)), ["a", "b"]), "each of the 3 rows"),
        (lambda: smooth(np.zeros((3, 2)), lengths=[1, 1]), "add up to 2"),
        (lambda: smooth(np.zeros((3, 2)), ["a"] * 3, lengths=[3]), "not both"),
        (lambda: smooth(np.zeros((3, 2)), present=[True]), "one entry"),
        (lambda: smooth(np.zeros(3)), "frames, classes"),
        (lambda: smooth(np.zeros((3, 2)), w=-1), "cannot be negative"),
        (lambda: cascade(np.zeros((3, 4)), np.zeros((3, 4))), "coarse must be"),
        (lambda: ABAW.labels([8]), "check the list's label map"),
        (
            lambda: ClassMap(classes=("a",), coarse_names=("a",), coarse=(0,), group=0, group_names=(), fine=(0,)),
            "fine",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ModelError, match=said):
        call()
