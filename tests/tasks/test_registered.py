"""The registry: what becomes champion, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.pth_net import PTHNet, PTHNetConfig
from tasks.bundle import Bundle, load_bundle, save_bundle
from tasks.registered import Registered, fetch, register
from tasks.tracking import Tracker, git_commit, tracking_uri
from tests.archives import feature_set


def bundle(extractor_id: str = "synthetic") -> Bundle:
    torch.manual_seed(0)
    config = PTHNetConfig(in_dim=16, dim=16, mlp_dim=16, num_classes=3, standardize=True)
    networks = {direction: PTHNet(config).eval() for direction in ("forward", "reverse")}
    return Bundle(networks=networks, mu=0.6, classes=("a", "b", "c"), extractor={}, extractor_id=extractor_id)


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    made = bundle()
    made.networks["forward"].set_standardization(torch.ones(16), 2 * torch.ones(16))
    found = load_bundle(save_bundle(made, tmp_path / "model"))
    features = feature_set(clips=8)
    sets = {"forward": features, "reverse": features}
    for system, logits in made.logits(sets, np.arange(8)).items():
        np.testing.assert_array_equal(found.logits(sets, np.arange(8))[system], logits)
    assert (found.mu, found.classes, found.extractor_id) == (0.6, ("a", "b", "c"), "synthetic")


def test_features_of_another_extractor_are_refused() -> None:
    features = feature_set(clips=3)
    with pytest.raises(ModelError, match=r"the model reads features of other-1 .* these are of synthetic"):
        bundle("other-1").logits({"forward": features, "reverse": features}, np.arange(3))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no trained model: it needs a readable model\.json"):
        load_bundle(tmp_path)


def test_weights_that_do_not_fit_their_settings_are_refused(tmp_path: Path) -> None:
    folder = save_bundle(bundle(), tmp_path / "model")
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"num_classes": 3', '"num_classes": 4'))
    with pytest.raises(ModelError, match="does not fit its settings"):
        load_bundle(folder)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracker(f"sqlite:///{folder}/mlflow.db", "tests", f"{folder}/artifacts")


def _register(
    tracker: Tracker, folder: Path, name: str, uar: float, data: str, other: tuple[float, float] | None = None
) -> Registered:
    made = bundle()
    path = save_bundle(made, folder / "model")
    run_id = tracker.begin("run", str(folder), {})
    return register(
        tracker, run_id, made, path, name, uar=uar, war=0.5, data=data, tags={}, score_champion=lambda champion: other
    )


def test_champion_is_who_is_better_on_the_same_data(tracker: Tracker, tmp_path: Path) -> None:
    first = _register(tracker, tmp_path, "faces", 0.40, "data-1")
    worse = _register(tracker, tmp_path, "faces", 0.39, "data-1")
    better = _register(tracker, tmp_path, "faces", 0.41, "data-1")
    assert [made.champion for made in (first, worse, better)] == [True, False, True]
    assert worse.reason == "not champion: UAR 39.00 against 40.00 of version 1 on the same data"
    aliases = {
        alias: tracker.client.get_model_version_by_alias("faces", alias).version for alias in ("candidate", "champion")
    }
    assert {alias: str(version) for alias, version in aliases.items()} == {"candidate": "3", "champion": "3"}
    assert tracker.client.get_model_version("faces", "2").tags["decision"] == worse.reason

    # On other data the champion is scored again; one that reads other features cannot be, and stays.
    rescored = _register(tracker, tmp_path, "faces", 0.30, "data-2", other=(0.29, 0.9))
    assert rescored.champion
    assert not _register(tracker, tmp_path, "faces", 0.99, "data-3", other=None).champion


def test_a_model_that_is_not_there_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no"):
        fetch(f"sqlite:///{tmp_path}/mlflow.db", "models:/faces@champion")
    assert not list(tmp_path.iterdir())


def test_an_unknown_alias_is_named(tracker: Tracker) -> None:
    with pytest.raises(ModelError, match="no model models:/nobody@champion"):
        fetch(tracker.uri, "models:/nobody@champion")


def test_an_interrupted_run_is_gone_on_with(tracker: Tracker) -> None:
    assert tracker.begin("one", "place", {}) == tracker.begin("one", "place", {})
    assert tracker.begin("one", "place", {}) != tracker.begin("one", "elsewhere", {})


def test_a_remote_folder_needs_a_named_tracking_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match="--tracking-uri"):
        tracking_uri(None, "s3://bucket/runs")
    assert tracking_uri(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(None, "s3://bucket/runs") == "http://127.0.0.1:5000"
    assert git_commit(tmp_path) is None
