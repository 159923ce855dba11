"""`pthnet flow` as a user meets it: one PNG a sample, what is missing named, what is there kept."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from workflows.cli import run


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    assert run(["synth-micro", str(tmp_path), "--subjects", "1"]) == 0
    rows = rows_of(tmp_path)[:5]
    with open(tmp_path / "few.csv", "w", newline="") as stream:
        few = csv.DictWriter(stream, list(rows[0]))
        few.writeheader()
        few.writerows(rows)
    return tmp_path


def rows_of(directory: Path) -> list[dict[str, str]]:
    with open(directory / "combined.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def arguments(micro: Path, *more: str) -> list[str]:
    return ["flow", str(micro / "few.csv"), str(micro / "frames"), str(micro / "made"), *more]


def test_flow_images_bear_the_published_names_and_a_preview_shows_them(micro: Path) -> None:
    assert run(arguments(micro, "--method", "farneback", "--preview", str(micro / "look.png"))) == 0
    made = sorted(path.name for path in (micro / "made").iterdir())
    assert made == sorted(f"{row['sub']}_{row['filename_o']} .png" for row in rows_of(micro)[:5])
    for name in made:
        assert np.array_equal(cv2.imread(str(micro / "made" / name)), cv2.imread(str(micro / "flow" / name)))
    assert cv2.imread(str(micro / "look.png")).shape[0] > 500


def test_images_that_are_there_are_kept_until_told_otherwise(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(micro, "--method", "farneback")) == 0
    first = sorted((micro / "made").iterdir())[0]
    first.unlink()
    assert run(arguments(micro, "--method", "tvl1")) == 0
    assert "1 flow images made" in capsys.readouterr().out
    assert not np.array_equal(cv2.imread(str(first)), cv2.imread(str(micro / "flow" / first.name))), (
        "by the other method"
    )
    assert run(arguments(micro, "--method", "farneback", "--overwrite")) == 0
    assert "5 flow images made" in capsys.readouterr().out


def test_samples_without_frames_are_listed_before_anything_is_computed(
    micro: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(micro)
    folder = micro / "frames" / rows[0]["dataset"] / rows[0]["sub"]
    (folder / rows[0]["filename_o"]).rename(folder / "elsewhere")
    (folder / rows[1]["filename_o"] / f"img{rows[1]['apex']}.png").unlink()
    assert run(arguments(micro)) == 2
    text = capsys.readouterr().err
    name = f"{rows[0]['sub']}_{rows[0]['filename_o']}"
    assert f"<sub>/<file> (1): {name}" in text
    assert f"no apex frame in its folder (1): {rows[1]['sub']}_{rows[1]['filename_o']} ({rows[1]['apex']})" in text
    assert not (micro / "made").exists()


def test_a_damaged_frame_fails_alone_and_by_name(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = rows_of(micro)[2]
    frame = micro / "frames" / row["dataset"] / row["sub"] / row["filename_o"] / f"img{row['onset']}.png"
    frame.write_bytes(b"\x89PNG cut short")
    assert run(arguments(micro, "--method", "farneback")) == 1
    said = capsys.readouterr()
    assert "4 flow images made" in said.out
    assert f"failed: {row['sub']}_{row['filename_o']}: {frame} is no image" in said.err


def test_frames_may_be_called_onset_and_apex(micro: Path) -> None:
    rows = rows_of(micro)[:5]
    for row in rows:
        folder = micro / "frames" / row["dataset"] / row["sub"] / row["filename_o"]
        for word in ("onset", "apex"):
            (folder / f"img{row[word]}.png").rename(folder / f"{word}.png")
    (micro / "few.csv").write_text(
        "dataset,sub,filename_o,label\n"
        + "".join(f"{r['dataset']},{r['sub']},{r['filename_o']},{r['label']}\n" for r in rows)
    )
    assert run(arguments(micro, "--method", "farneback")) == 0
    assert len(list((micro / "made").iterdir())) == 5


def test_numbers_find_frames_by_the_last_digits_of_their_names(micro: Path) -> None:
    row = rows_of(micro)[0]
    folder = micro / "frames" / row["dataset"] / row["sub"] / row["filename_o"]
    (folder / f"img{row['onset']}.png").rename(folder / f"reg_0006_{int(row['onset']):05d}.png")
    assert run(arguments(micro, "--method", "farneback")) == 0
