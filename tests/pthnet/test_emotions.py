"""Numbers and words of the public lists mean what their authors meant."""

import pytest

from pthnet.emotions import LABELS, label_map
from pthnet.errors import ModelError


def test_the_three_published_conventions():
    assert LABELS["dfew"].index("3") == 3
    assert LABELS["dfew"].classes[3] == "Angry"
    assert LABELS["rafdb"].index("7") == 6
    assert LABELS["rafdb"].classes[6] == "Neutral"
    assert LABELS["afew"].index("Happy") == 3


@pytest.mark.parametrize("word", ["Happy", "happiness", " JOY "])
def test_words_in_any_spelling(word):
    assert LABELS["affwild2"].index(word) == 4
    assert LABELS["dfew"].index(word) == 0


def test_minus_one_is_unlabelled_whatever_the_first_number():
    assert LABELS["rafdb"].index("-1") == LABELS["dfew"].index("-1") == -1


@pytest.mark.parametrize(("name", "token"), [("rafdb", "0"), ("dfew", "7"), ("dfew", "Contempt"), ("dfew", "-2")])
def test_unknown_labels_are_refused(name, token):
    with pytest.raises(ModelError, match="choose another"):
        LABELS[name].index(token)


def test_one_map_translates_into_another():
    assert LABELS["rafdb"].to(LABELS["dfew"]).tolist() == [4, 6, 5, 0, 1, 3, 2]
    assert LABELS["affwild2"].to(LABELS["dfew"])[7] == -1


def test_own_class_names():
    assert label_map("Calm, Tense").index("tense") == 1
    with pytest.raises(ModelError, match="known: dfew"):
        label_map("drew")
