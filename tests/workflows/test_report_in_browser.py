"""The page in a real browser without a network: it sorts, filters, shows its pictures and plays its videos."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.illustrate import PictureJob, illustrate
from tasks.report_page import write_page
from tests import videos
from tests.browser import Visit, browser
from tests.predicted import CLASSES
from tests.tasks.test_report_page import page_clips

PLAYED = """async () => {
  const video = document.querySelector("video");
  await video.play();
  await new Promise(done => { video.ontimeupdate = () => video.currentTime > 0.3 && done(); });
  return [video.error && video.error.message, video.videoWidth, video.videoHeight];
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    video = videos.encode(folder / "source.mp4", frames=np.full((40, 120, 160, 3), 128, np.uint8))
    clips = page_clips(3, names=["b 笑/1#2%.mp4", "a<b>&c", "c"])
    made = []
    for clip in clips:
        job = PictureJob(track=clip.track, uri=str(video), kind="video", content="c", folder=str(folder), model="m")
        made.append(replace(clip, pictures=illustrate(job)))
    refused = [("bad/<i>clip", "decode_error", "cut short")]
    return write_page(folder, made, CLASSES, title="Three clips", about="a test", refused=refused)


@pytest.fixture
def visit(chromium: Any, page: Path) -> Iterator[Visit]:
    found = Visit(chromium, offline=True)
    found.page.goto(page.as_uri())
    yield found
    assert not found.errors
    assert all(url.startswith(("file:", "data:")) for url in found.fetched)
    found.page.context.close()


def names(visit: Visit) -> list[str]:
    found: list[str] = visit.page.locator("#rows td.name").all_inner_texts()
    return found


def test_it_sorts_filters_and_finds(visit: Visit) -> None:
    page = visit.page
    assert page.title() == "Three clips"
    assert names(visit) == ["a<b>&c", "b 笑/1#2%.mp4", "c"]
    page.click("[data-sort=clip]")
    assert names(visit) == ["c", "b 笑/1#2%.mp4", "a<b>&c"]
    assert page.get_attribute("th:has([data-sort=clip])", "aria-sort") == "descending"
    page.click("[data-sort=confidence]")
    shown = page.locator("#rows td.num:nth-child(4)").all_inner_texts()
    assert sorted(shown, key=lambda text: -int(text.split()[0])) == shown
    page.fill("#search", "笑")
    assert names(visit) == ["b 笑/1#2%.mp4"]
    page.fill("#search", "")
    counts = {i: int(page.inner_text(f"[data-label='{i}']").split()[-1]) for i in range(len(CLASSES))}
    for label, count in counts.items():
        page.click(f"[data-label='{label}']")
        assert len(names(visit)) == count
    assert sum(counts.values()) == 3
    page.click("summary")
    assert "bad/<i>clip" in page.inner_text("#refused")


def test_a_clip_shows_its_pictures_plays_its_overlay_and_its_windows_seek(visit: Visit) -> None:
    page = visit.page
    page.focus("#rows tr:nth-child(1)")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h2") == "b 笑/1#2%.mp4"
    assert page.evaluate(PLAYED) == [None, 160, 120]
    loaded = "() => [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    assert page.evaluate(loaded) == [True] * 4, "three thumbnails and a timeline"
    assert page.locator(".windows tbody tr").count() == 7
    page.evaluate("document.querySelector('video').pause()")
    page.click(".windows tbody tr:nth-child(4)")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(0.48)


def test_of_five_hundred_clips_a_hundred_at_a_time_are_in_the_page(chromium: Any, tmp_path: Path) -> None:
    visit = Visit(chromium, offline=True)
    visit.page.goto(write_page(tmp_path, page_clips(500), CLASSES, title="t", about="a").as_uri())
    assert visit.page.locator("#rows tr").count() == 100
    visit.page.click("#after")
    assert visit.page.inner_text("#where") == "101 to 200 of 500"
    visit.page.fill("#search", "clip/499")
    assert names(visit) == ["clip/499"]
    assert not visit.errors
