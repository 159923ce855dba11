"""The page: one file that needs nothing else, bears any name, and stays small."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tasks.illustrate import Pictures
from tasks.report_page import PageClip, write_page
from tasks.track import track_of
from tests.predicted import CLASSES, small_bundle, some_scores

NASTY = "</script><script>alert(1)</script> \"'&<img src=x onerror=alert(1)> 笑"


def page_clips(count: int, frames: int = 40, names: list[str] | None = None) -> list[PageClip]:
    from dataclasses import replace

    scores, _ = some_scores(small_bundle(), [frames] * count)
    made = []
    for index in range(count):
        track = track_of(scores, index, CLASSES)
        if names:
            track = replace(track, clip=names[index])
        clip = PageClip(
            track=track,
            shares=scores.clip["fused"][index],
            agreement=0.5,
            num_frames=frames,
            uri="/gone.mp4",
            kind="video",
        )
        made.append(clip)
    return made


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    result: dict[str, Any] = json.loads(found[1])
    return result


def test_names_are_data_and_never_markup(tmp_path: Path) -> None:
    refused = [(NASTY, "decode_error", NASTY)]
    page = write_page(tmp_path, page_clips(1, names=[NASTY]), CLASSES, title=NASTY, about=NASTY, refused=refused)
    scripts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            scripts.append(tag) if tag in ("script", "img") else None

    Reader().feed(page.read_text("utf-8"))
    assert scripts == ["script", "script"], "the data and the program, and no picture that a name smuggled in"
    data = data_of(page)
    assert data["clips"][0]["clip"] == NASTY
    assert data["refused"] == [list(refused[0])]


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    text = write_page(tmp_path, page_clips(2), CLASSES, title="t", about="a").read_text()
    addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a namespace, which no browser asks for"
    assert not re.search(r"<link|@import|url\(", text)


def test_five_hundred_clips_with_thumbnails_weigh_less_than_five_megabytes(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "a b.jpg").write_bytes(np.random.default_rng(0).bytes(3000))
    pictures = Pictures(thumbnail="thumbnails/a b.jpg", timeline="timelines/a b#1.png", overlay="overlays/100%.mp4")
    from dataclasses import replace

    clips = [replace(clip, pictures=pictures) for clip in page_clips(500)]
    page = write_page(tmp_path, clips, CLASSES, title="t", about="a")
    assert page.stat().st_size < 5e6
    shown = data_of(page)["clips"][7]
    assert shown["thumbnail"].startswith("data:image/jpeg;base64,")
    assert (shown["timeline"], shown["video"]) == ("timelines/a%20b%231.png", "overlays/100%25.mp4")


def test_a_long_video_shows_a_part_of_its_windows(tmp_path: Path) -> None:
    page = write_page(tmp_path, page_clips(1, frames=5000), CLASSES, title="t", about="a")
    windows = data_of(page)["clips"][0]["windows"]
    assert 250 <= len(windows["start"]) <= 300
    assert windows["end"][-1] > 195


def test_without_an_overlay_the_clip_itself_is_shown(tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "my clip.mp4").touch()
    clip = replace(page_clips(1)[0], uri=str(tmp_path / "my clip.mp4"))
    assert data_of(write_page(tmp_path, [clip], CLASSES, title="t", about="a"))["clips"][0]["video"].endswith(
        "my%20clip.mp4"
    )
