import pytest

from pthnet.benchmarks import BENCHMARKS, Fold, Schedule, find_benchmark, load_benchmark_yaml, overlap
from pthnet.errors import ModelError


@pytest.mark.parametrize(
    ("name", "classes", "folds"),
    [
        ("FERV39k", 7, 1),
        ("DFEW", 7, 5),
        ("MAFW-single", 11, 5),
        ("MAFW-compound", 43, 5),
        ("CREMA-D", 6, 5),
        ("eNTERFACE05", 6, 5),
        ("RAVDESS", 8, 6),
        ("MELD", 7, 1),
        ("CASME-II", 5, 26),
    ],
)
def test_the_published_layouts(name, classes, folds):
    benchmark = find_benchmark(name)
    assert (benchmark.num_classes, len(benchmark.folds)) == (classes, folds)
    assert [fold.number for fold in benchmark.folds] == list(range(1, folds + 1))
    assert len(BENCHMARKS) == 9


def test_a_benchmark_is_found_however_its_name_is_typed():
    assert find_benchmark("ferv39K") is find_benchmark("FERV39k")
    assert find_benchmark("casme ii") is find_benchmark("CASME-II")
    assert find_benchmark("MAFW (single)") is find_benchmark("mafw_single")
    with pytest.raises(ModelError, match=r"known: FERV39k, DFEW, .*CASME-II"):
        find_benchmark("AFEW")


def test_lists_are_named_as_published():
    assert find_benchmark("FERV39k").fold(1) == Fold(1, "train_All.txt", "test_All.txt")
    assert find_benchmark("DFEW").fold(4) == Fold(4, "set_4_train.txt", "set_4_test.txt")
    with pytest.raises(ModelError, match="folds 1 to 5; found 6"):
        find_benchmark("DFEW").fold(6)


def test_training_settings_are_the_published_ones_or_say_they_are_not():
    assert find_benchmark("FERV39k").schedule == Schedule()
    assert find_benchmark("DFEW").schedule == Schedule(epochs=30, milestones=(10, 15, 20, 25), factor=0.5)
    assert {b.name for b in BENCHMARKS if b.schedule_published} == {"FERV39k", "DFEW"}


def test_only_public_scores_are_shown():
    assert {b.name for b in BENCHMARKS if b.scores} == {"FERV39k", "DFEW"}
    fused = [s for s in find_benchmark("DFEW").scores if (s.view, s.model) == ("faces", "fused")]
    assert [(s.uar, s.war) for s in fused] == [(62.28, 70.85)]


@pytest.mark.parametrize(
    ("name", "clip_id", "subject"),
    [
        ("CREMA-D", "video/1001_DFA_ANG_XX", "1001"),
        ("eNTERFACE05", "s12_an_3", "12"),
        ("RAVDESS", "Actor_24/01-01-05-02-01-02-24", "24"),
        ("MELD", "test/dia125_utt3", "125"),
        ("CASME-II", "sub05/sub05_EP03_07", "05"),
        ("CREMA-D", "unnamed", None),
        ("FERV39k", "Crime/Angry/0063", None),
    ],
)
def test_a_clip_name_tells_who_is_seen(name, clip_id, subject):
    assert find_benchmark(name).subject(clip_id) == subject


def test_the_twins_of_a_recording_are_recognised_across_the_lists():
    train = ["a/01-01-03-01-01-01-07", "a/01-01-03-01-01-02-07"]
    test = ["b/02-01-03-01-01-01-07", "b/02-01-04-01-01-01-08", "b/02-01-04-01-01-01-07", "a/01-01-03-01-01-02-07"]
    found = overlap(find_benchmark("RAVDESS"), train, test)
    assert found.clips == ("a/01-01-03-01-01-02-07",)
    assert found.recordings == ("01-03-01-01-01-07", "01-03-01-01-02-07")
    assert found.subjects == ("07",)
    assert (found.clip_share, found.recording_share, found.subject_share) == (0.25, 0.5, 0.75)
    assert overlap(find_benchmark("FERV39k"), ["x"], ["y", "z"]).subject_share == 0


def test_a_data_set_of_ones_own_is_a_small_file(tmp_path):
    path = tmp_path / "clinic.yaml"
    path.write_text(
        "name: clinic\nclasses: [Neutral, Pain]\nfolds:\n  - {train: a.txt, test: b.txt}\n"
        "subject_pattern: 'p(\\d+)_'\nschedule: {epochs: 30, milestones: [10, 20]}\n"
    )
    benchmark = load_benchmark_yaml(path)
    assert benchmark.classes == ("Neutral", "Pain")
    assert benchmark.folds == (Fold(1, "a.txt", "b.txt"),)
    assert benchmark.subject("p17_2") == "17"
    assert benchmark.schedule == Schedule(epochs=30, milestones=(10, 20))
    path.write_text("name: clinic\nclasses: [Neutral, Pain]\nfolds: 3\n")
    assert load_benchmark_yaml(path).fold(3).train == "set_3_train.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read"),
        ("classes: [a, b]", "needs name, classes and folds; found classes"),
        ("{name: n, classes: [a, b], folds: 1, epochs: 3}", "unknown setting epochs; known: name"),
        ("{name: n, classes: [a, b], folds: 1, schedule: {lr: 3}}", "unknown setting lr; known: epochs"),
        ("{name: n, classes: [a, b], folds: 1, schedule: 3}", "settings by name"),
        ("{name: n, classes: [a, b], folds: 1, schedule: {epochs: many}}", "epochs must be a number; found 'many'"),
        ("{name: n, classes: [a, b], folds: 1, schedule: {milestones: 5}}", "milestones must be a list of epochs"),
        ("{name: n, classes: ab, folds: 1}", "list of names"),
        ("{name: n, classes: [a, a], folds: 1}", "at least two classes, each once"),
        ("{name: n, classes: [a, b], folds: 0}", "at least one fold"),
        ("{name: n, classes: [a, b], folds: [a.txt]}", "folds must be a number or a list"),
        ("{name: n, classes: [a, b], folds: 1, subject_pattern: '('}", "not a regular expression"),
        ("{name: n, classes: [a, b], folds: 1, subject_pattern: 'p'}", "needs a group"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        load_benchmark_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.yaml cannot be read"):
        load_benchmark_yaml(tmp_path / "none.yaml")
