"""What training reads: features joined with labels by clip, and what is refused."""

import numpy as np
import pytest

from storage.errors import StorageError
from storage.features import FeatureTable
from tasks.feature_set import choose_extractor, load_feature_set, present, refuse_missing
from tests.archives import Archive, feature_set, write_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), clips=12)


def test_labels_are_joined_by_clip_and_not_by_position(archive: Archive) -> None:
    shuffled = archive.clip_ids[::-1]
    labels = np.array([archive.clip_ids.index(clip) for clip in shuffled])
    loaded = load_feature_set(archive.features, shuffled, labels, direction="forward", extractor=archive.extractor)
    assert [archive.clip_ids[label] for label in loaded.labels] == loaded.clip_ids.tolist()
    assert loaded.dim == 16
    assert loaded.offsets[-1] == len(loaded.features)


def test_the_two_directions_of_a_clip_differ(archive: Archive) -> None:
    sets = [
        load_feature_set(
            archive.features, archive.clip_ids, np.zeros(12, int), direction=d, extractor=archive.extractor
        )
        for d in ("forward", "reverse")
    ]
    assert sets[0].clip_ids.tolist() == sets[1].clip_ids.tolist()
    assert not np.allclose(sets[0].features, sets[1].features)


def test_standardisation_is_over_the_windows_of_the_rows_given() -> None:
    features = feature_set(clips=9)
    rows = np.array([1, 4, 7])
    mean, deviation = features.standardization(rows, block=5)
    windows = np.concatenate([features.features[features.offsets[r] : features.offsets[r + 1]] for r in rows])
    np.testing.assert_allclose(mean, windows.mean(0), atol=1e-6)
    np.testing.assert_allclose(deviation, windows.std(0), rtol=1e-5)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    features = feature_set(clips=4)
    features.features[:, 3] = 2.5
    assert features.standardization(np.arange(4))[1][3] == 1.0


def test_clips_are_found_by_name() -> None:
    features = feature_set(clips=5)
    assert features.locate(["clip/000003", "nowhere", "clip/000000"]).tolist() == [3, -1, 0]


def test_a_segmented_clip_counts_only_when_it_is_whole(archive: Archive) -> None:
    keys = FeatureTable(archive.features).keys()
    assert len(present(keys, archive.extractor)) == 12
    half = keys.set_column(2, "num_segments", [[2] * len(keys)])
    assert len(present(half, archive.extractor)) == 0


def test_missing_clips_are_named_with_the_remedy() -> None:
    with pytest.raises(StorageError, match=r"2 of 3 listed clips have no features in table: b, c.*--allow-missing"):
        refuse_missing(["a", "b", "c"], np.array(["a"]), "table", allow=False)
    assert refuse_missing(["a", "b"], np.array(["a"]), "table", allow=True).tolist() == [True, False]


def test_nothing_held_is_refused_even_when_missing_clips_are_allowed() -> None:
    with pytest.raises(StorageError, match="1 of 1 listed clips"):
        refuse_missing(["a"], np.array([], dtype=str), "table", allow=True)


@pytest.mark.parametrize(
    ("held", "wanted", "message"),
    [
        (["x"], "y", "no features of extractor y; it has x"),
        ([], None, "holds no features; run `pthnet extract"),
        (["x", "y"], None, "features of 2 extractors; name one with --extractor: x, y"),
    ],
)
def test_an_extractor_that_is_not_there_is_refused(held: list[str], wanted: str | None, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        choose_extractor(held, wanted, "table")
