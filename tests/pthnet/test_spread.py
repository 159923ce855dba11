"""Distances within and between classes, by hand."""

import pytest

from pthnet.errors import ModelError
from pthnet.spread import feature_spread


def test_three_samples_by_hand():
    # within: |0-2| = 2; between: |0-10| and |2-10|
    assert feature_spread([[0.0, 0], [1, 1], [10, 0]], [0, 0, 1]) == (2.0, 10.0, 0.2)


def test_the_ratio_does_not_feel_the_scale():
    points, labels = [[0.0], [1], [4], [6]], [0, 0, 1, 1]
    scaled = [[100 * value for value in row] for row in points]
    assert feature_spread(points, labels).ratio == pytest.approx(feature_spread(scaled, labels).ratio)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 1]])
def test_what_has_no_ratio_is_refused(labels):
    with pytest.raises(ModelError):
        feature_spread([[0.0], [1], [2]], labels)
