"""From videos to tables and pictures: what is missing is extracted, what is there reused, what is bad is said."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pc_csv
import pytest

from pthnet.errors import ModelError
from storage.features import FeatureTable
from tests import videos
from tests.pipeline import local_ray
from tests.predicted import CLASSES, small_bundle
from workflows import cli
from workflows.extract import Settings
from workflows.predict import run_prediction
from workflows.predict_pictures import Wanted

NOTHING = Wanted(timeline=False, overlay=False, report=False)
QUICK = Settings(measure=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Videos, a model in a folder, and predictions of them; Ray runs only while this is made."""
    folder = tmp_path_factory.mktemp("predict")
    small_bundle(folder / "model", tiny=True)
    videos.encode(folder / "videos" / "a" / "plain.mp4", frames=40)
    videos.encode(folder / "videos" / "long.mp4", frames=90)
    videos.encode(folder / "videos" / "two words.mp4", frames=5)
    videos.image_folder(folder / "videos" / "frames", 20)
    (folder / "videos" / "broken.mp4").write_bytes(b"no video at all")
    with local_ray():
        first = run_prediction(
            [str(folder / "videos")],
            model=str(folder / "model"),
            out=folder / "out",
            settings=Settings(measure=False, segment_frames=48),
        )
    (folder / "first.json").write_text(json.dumps(vars(first)))
    yield folder
    shutil.rmtree(folder)


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return found


def test_one_row_per_clip_one_per_window_and_one_per_refusal(place: Path) -> None:
    first = json.loads((place / "first.json").read_text())
    assert (first["clips"], first["extracted"], first["quarantined"]) == (4, 4, {"decode_error": 1})
    clips = {row["clip"]: row for row in rows(place / "out", "clips")}
    assert sorted(clips) == ["a/plain", "frames", "long", "two words"]
    assert {name: row["windows"] for name, row in clips.items()} == {
        "a/plain": 7, "frames": 2, "long": 20, "two words": 1
    }  # fmt: skip
    for row in clips.values():
        shares = [row[f"p_{name}"] for name in CLASSES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert (row["label"], row["confidence"]) == (CLASSES[int(np.argmax(shares))], max(shares))
        assert 0 <= row["agreement"] <= 1
        assert row["forward_label"] in CLASSES
    windows = rows(place / "out", "windows")
    plain = [row for row in windows if row["clip"] == "a/plain"]
    assert [(row["start_s"], row["end_s"]) for row in plain][-2:] == [(0.8, 1.44), (0.96, 1.6)]
    assert all(row["contribution"] is not None and row["used"] for row in plain)
    assert {row["start_s"] for row in windows if row["clip"] == "frames"} == {None}, "frames in a folder have no rate"
    (lone,) = [row for row in windows if row["clip"] == "two words"]
    assert lone["contribution"] is None
    (refused,) = rows(place / "out", "quarantined")
    assert (refused["clip"], refused["kind"]) == ("broken", "decode_error")
    for name in ("clips", "windows", "quarantined"):
        as_text = pc_csv.read_csv(place / "out" / f"{name}.csv")
        assert as_text.num_rows == len(rows(place / "out", name))


def test_a_clip_cut_into_segments_is_one_clip_again(place: Path) -> None:
    keys = FeatureTable(str(place / "out" / "features")).keys()
    assert keys.filter([name == "long" for name in keys["clip_id"].to_pylist()])["num_segments"].to_pylist() == [2, 2]
    starts = [row["start_frame"] for row in rows(place / "out", "windows") if row["clip"] == "long"]
    assert starts == [*range(0, 74, 4), 74]


def test_again_nothing_is_extracted_drawn_or_changed_and_ray_stays_down(place: Path) -> None:
    import ray

    pictures = {p: p.stat().st_mtime_ns for part in ("overlays", "timelines") for p in (place / "out" / part).iterdir()}
    before = (place / "out" / "clips.csv").read_text(), (place / "out" / "windows.csv").read_text()
    again = run_prediction([str(place / "videos")], model=str(place / "model"), out=place / "out", settings=QUICK)
    assert not ray.is_initialized()
    assert (again.extracted, again.clips) == (0, 4)
    assert before == ((place / "out" / "clips.csv").read_text(), (place / "out" / "windows.csv").read_text())
    assert {p: p.stat().st_mtime_ns for p in pictures} == pictures
    assert len(pictures) == 8


def test_one_video_from_features_another_command_made(place: Path, tmp_path: Path) -> None:
    one = run_prediction(
        [str(place / "videos" / "a" / "plain.mp4")],
        model=str(place / "model"),
        out=tmp_path,
        features=str(place / "out" / "features"),
        root=str(place / "videos"),
        pictures=NOTHING,
    )
    assert (one.clips, one.extracted) == (1, 0)
    (row,) = rows(tmp_path, "clips")
    (same,) = [each for each in rows(place / "out", "clips") if each["clip"] == "a/plain"]
    assert row == same
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv"] * 3 + [".json"] + [".parquet"] * 3


def test_chunks_change_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.predict_score.CHUNK_CLIPS", 1)
    run_prediction(
        [str(place / "videos")],
        model=str(place / "model"),
        out=tmp_path,
        features=str(place / "out" / "features"),
        pictures=NOTHING,
    )
    for name in ("clips", "windows"):
        for one, other in zip(rows(tmp_path, name), rows(place / "out", name), strict=True):
            numbers = [name for name, value in one.items() if isinstance(value, float)]
            assert [one[name] for name in numbers] == pytest.approx([other[name] for name in numbers], abs=1e-5)
            assert {k: v for k, v in one.items() if k not in numbers} == {
                k: v for k, v in other.items() if k not in numbers
            }


def test_the_command_line_answers_with_json_and_its_exit_codes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(place / "model"), "--features", str(place / "out" / "features")]
    quiet = ["--no-timeline", "--no-overlay", "--no-report"]
    given = ["predict", str(place / "videos"), *given, "--out", str(tmp_path / "out"), *quiet]
    assert cli.run([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 4
    assert cli.run([*given, "--max-failure-rate", "0.1"]) == 1
    assert "decode_error 1" in capsys.readouterr().out
    assert cli.run(["predict", str(place / "nowhere"), "--model", str(place / "model"), "--out", str(tmp_path)]) == 2
    assert cli.run(["predict", str(place / "videos"), "--model", "nothing", "--out", str(tmp_path)]) == 2
    assert "neither models:/NAME@ALIAS" in capsys.readouterr().err


def test_weights_that_are_not_the_models_are_refused_before_anything_runs(place: Path, tmp_path: Path) -> None:
    import torch

    from pthnet.videomae import VideoMAE, VideoMAEConfig
    from tasks.bundle import load_bundle
    from tasks.model_source import backbone_weights, extractor_of

    other = tmp_path / "other.pth"
    torch.save(VideoMAE.seeded(VideoMAEConfig.named("tiny"), 7).state_dict(), other)
    with pytest.raises(ModelError, match=r"tiny|heads|weights"):
        run_prediction(
            [str(place / "videos" / "long.mp4")], model=str(place / "model"), out=tmp_path / "out", weights=str(other)
        )
    bundle = load_bundle(place / "model")
    bundle.extractor = {**bundle.extractor, "seed": None}
    bundle.backbone_uri = "/moved/away.pth"
    with pytest.raises(ModelError, match=r"they were at /moved/away\.pth.*--weights FILE"):
        backbone_weights(bundle, extractor_of(bundle))
