"""Decoding: the right frames from every codec, and every failure a value that leaves the neighbours alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from storage.copies import content_of
from tasks.decode import Decoded, DecodePool, DecodeRequest, decode_segment
from tests import videos
from tests.videos import encode, numbered_frames, read_numbers

BAD = "tests.tasks.bad_readers:by_name"


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=2, timeout_s=60) as pool:
        yield pool


def one(pool: DecodePool, path: Path, **how: object) -> Decoded:
    return pool.decode([DecodeRequest(uri=str(path), **how)])[0]  # type: ignore[arg-type]


def numbers(decoded: Decoded) -> list[int]:
    assert decoded.frames is not None, decoded
    return read_numbers(decoded.frames)


CODECS = [
    ("h264", ".mp4"), ("h264", ".mov"), ("h264", ".mkv"), ("hevc", ".mp4"), ("hevc10", ".mkv"), ("vp9", ".webm"),
    ("av1", ".mp4"), ("av1", ".webm"), ("mpeg4", ".avi"), ("mpeg4", ".mp4"), ("mjpeg", ".avi"),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "suffix"), CODECS)
def test_every_codec_gives_all_frames_in_order_and_any_part_of_them(
    pool: DecodePool, tmp_path: Path, codec: str, suffix: str
) -> None:
    path = encode(tmp_path / f"clip{suffix}", codec, frames=50, size=(80, 48))
    whole = one(pool, path)
    assert numbers(whole) == list(range(50))
    assert (whole.num_frames, whole.width, whole.height, whole.fps) == (50, 80, 48, pytest.approx(25))
    assert whole.decoder == ("pyav" if codec == "av1" else "decord")
    for first, last in ((0, 16), (13, 29), (35, 50), (49, 50)):
        part = one(pool, path, first=first, last=last, num_frames=50)
        assert numbers(part) == list(range(first, last))
        assert part.num_frames == 50


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_variable_frame_rate_neither_drops_nor_repeats_frames(pool: DecodePool, tmp_path: Path, codec: str) -> None:
    path = encode(tmp_path / "clip.mkv", codec, frames=40, uneven=True)
    assert numbers(one(pool, path)) == list(range(40))
    assert numbers(one(pool, path, first=11, last=30, num_frames=40)) == list(range(11, 30))


@pytest.mark.parametrize("size", [(63, 51), (81, 47), (1, 33)])
def test_odd_sizes_are_kept(pool: DecodePool, tmp_path: Path, size: tuple[int, int]) -> None:
    decoded = one(pool, encode(tmp_path / "clip.webm", "vp9", frames=3, size=size))
    assert decoded.frames is not None
    assert decoded.frames.shape == (3, size[1], size[0], 3)


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
@pytest.mark.parametrize("size", [(80, 48), (64, 96)])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_phone_video_comes_out_upright(
    pool: DecodePool, tmp_path: Path, codec: str, size: tuple[int, int], rotation: int
) -> None:
    width, height = size
    picture = np.full((4, height, width, 3), 128, np.uint8)
    picture[:, : height // 2, : width // 2] = (230, 30, 30)  # one red quarter, one green
    picture[:, height // 2 :, : width // 2] = (30, 230, 30)
    decoded = one(pool, encode(tmp_path / "phone.mov", codec, frames=picture, rotation=rotation))
    upright = np.rot90(picture[0], rotation // 90)
    assert decoded.frames is not None
    assert decoded.frames.shape[1:] == upright.shape
    assert np.abs(decoded.frames[0].astype(int) - upright).mean() < 12


def test_frames_are_resized_as_the_pixel_rule_does(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=numbered_frames(5, (320, 240)))
    native, small = one(pool, path), one(pool, path, size=(112, 96))
    assert native.frames is not None
    assert small.frames is not None
    assert small.frames.shape == (5, 96, 112, 3)
    assert (small.width, small.height) == (320, 240)
    assert np.array_equal(small.frames[2], cv2.resize(native.frames[2], (112, 96), interpolation=cv2.INTER_LINEAR))


def test_one_frame_is_a_clip(pool: DecodePool, tmp_path: Path) -> None:
    assert numbers(one(pool, encode(tmp_path / "clip.mp4", frames=1))) == [0]


def test_names_with_spaces_and_other_scripts_are_read(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "мой клип" / "笑 顔 #1 100%.mp4", frames=3)
    assert numbers(one(pool, path)) == [0, 1, 2]


def test_a_folder_of_frames_is_read_in_natural_order(pool: DecodePool, tmp_path: Path) -> None:
    folder = videos.image_folder(tmp_path / "clip", 12)
    assert numbers(one(pool, folder, kind="frames")) == list(range(12))
    assert numbers(one(pool, folder, kind="frames", first=8, last=12, num_frames=12)) == [8, 9, 10, 11]


def test_frames_of_several_sizes_need_a_target_size(pool: DecodePool, tmp_path: Path) -> None:
    folder = videos.image_folder(tmp_path / "clip", 3)
    cv2.imwrite(str(folder / "4.png"), np.zeros((32, 40, 3), np.uint8))
    resized, native = one(pool, folder, kind="frames", size=(48, 48)), one(pool, folder, kind="frames")
    assert resized.frames is not None
    assert resized.frames.shape == (4, 48, 48, 3)
    assert (native.kind, native.frames) == ("decode_error", None)
    assert "target size" in (native.detail or "")


def test_an_unreadable_image_is_named(pool: DecodePool, tmp_path: Path) -> None:
    folder = videos.image_folder(tmp_path / "clip", 3)
    (folder / "2.png").write_bytes(b"not a picture")
    decoded = one(pool, folder, kind="frames")
    assert decoded.kind == "decode_error"
    assert "2.png" in (decoded.detail or "")


def test_a_folder_without_images_is_empty_and_one_image_is_a_clip(pool: DecodePool, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert one(pool, tmp_path / "bare", kind="frames").kind == "empty"
    cv2.imwrite(str(tmp_path / "face.png"), numbered_frames(1)[0])
    assert numbers(one(pool, tmp_path / "face.png", kind="image")) == [0]


def _zero(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("these are words, not a video\n" * 50)


def _silent_picture(path: Path) -> None:
    path.unlink()
    videos.audio_only(path)


DAMAGE = [
    (_zero, {"empty"}), (_text, {"decode_error"}), (_silent_picture, {"no_video_stream"}),
    (videos.truncate, {"frame_count_mismatch", "decode_error"}), (os.unlink, {"missing"}),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kinds"), DAMAGE, ids=["zero", "text", "audio", "truncated", "gone"])
@pytest.mark.parametrize("faststart", [False, True])
def test_a_bad_file_fails_with_its_kind_and_leaves_its_neighbours_alone(
    pool: DecodePool, tmp_path: Path, damage: object, kinds: set[str], faststart: bool
) -> None:
    paths = [encode(tmp_path / f"{i}.mp4", frames=20, faststart=faststart) for i in range(3)]
    damage(paths[1])  # type: ignore[operator]
    before, bad, after = pool.decode([DecodeRequest(uri=str(p)) for p in paths])
    assert (bad.status, bad.frames) == ("failed", None)
    assert bad.kind in kinds
    assert bad.detail
    assert numbers(before) == numbers(after) == list(range(20))


@pytest.mark.parametrize("codec", ["mpeg4", "vp9"])
def test_a_video_cut_between_two_frames_is_not_taken_for_a_shorter_one(
    pool: DecodePool, tmp_path: Path, codec: str
) -> None:
    path = videos.truncate(encode(tmp_path / "clip.mp4", codec, frames=60, faststart=True), 0.7)
    decoded = one(pool, path)
    assert decoded.kind == "frame_count_mismatch"
    assert "promises 60 frames" in (decoded.detail or "")


def test_a_renamed_video_is_read_by_what_it_is(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5).rename(tmp_path / "clip.avi")
    assert numbers(one(pool, path)) == list(range(5))


def test_a_clip_longer_than_planned_fails_instead_of_filling_the_memory(pool: DecodePool, tmp_path: Path) -> None:
    for codec in ("h264", "av1"):
        decoded = one(pool, encode(tmp_path / f"{codec}.mp4", codec, frames=30), max_frames=29)
        assert (decoded.kind, decoded.frames) == ("frame_count_mismatch", None)
        assert "29" in (decoded.detail or "")


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_segment_of_a_clip_with_another_length_fails(pool: DecodePool, tmp_path: Path, codec: str) -> None:
    path = encode(tmp_path / "clip.mp4", codec, frames=30)
    assert one(pool, path, first=10, last=26, num_frames=40).kind == "frame_count_mismatch"
    assert one(pool, path, first=20, last=36).kind == "frame_count_mismatch"


def test_a_clip_that_changed_after_planning_is_not_read(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5)
    planned = content_of(str(path), "video")
    assert one(pool, path, content=planned).status == "ok"
    encode(path, frames=6)
    assert one(pool, path, content=planned).kind == "changed"


def test_a_clip_replaced_while_it_is_read_is_found_out(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5)
    reader = "tests.tasks.bad_readers:replaced_while_read"
    with DecodePool(timeout_s=60, reader=reader) as pool:
        assert one(pool, path, content=content_of(str(path), "video")).kind == "changed"


def test_a_file_without_permission_is_access_denied(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5)
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything
        assert one(pool, path).status == "ok"
    else:
        assert one(pool, path).kind == "access_denied"


DEATHS = [
    ("segfault", "decode_crash", "SIGSEGV"), ("abort", "decode_crash", "SIGABRT"), ("half", "decode_crash", "SIGSEGV"),
    ("bomb", "out_of_memory", "memory"), ("killed", "out_of_memory", "memory"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "word"), DEATHS)
def test_a_dying_decoder_fails_one_clip_only(tmp_path: Path, name: str, kind: str, word: str) -> None:
    paths = [encode(tmp_path / f"{n}.mp4", frames=5) for n in ("a", name, "b", "c")]
    with DecodePool(timeout_s=60, memory_bytes=400 << 20, reader=BAD) as pool:
        before, bad, *after = pool.decode([DecodeRequest(uri=str(p)) for p in paths])
        again = one(pool, paths[0])
    assert (bad.status, bad.kind, bad.frames) == ("failed", kind, None)
    assert word in (bad.detail or "")
    for good in (before, *after, again):
        assert numbers(good) == list(range(5))


def test_a_hanging_decoder_is_killed_at_its_deadline_while_others_go_on(tmp_path: Path) -> None:
    paths = [encode(tmp_path / f"{n}.mp4", frames=5) for n in ("a", "hang", "b", "c")]
    with DecodePool(workers=2, timeout_s=3, reader=BAD) as pool:
        before, bad, *after = pool.decode([DecodeRequest(uri=str(p)) for p in paths])
        assert not [c for c in pool._children if c.process.poll() is not None]
    assert (bad.kind, bad.frames) == ("decode_timeout", None)
    assert [numbers(good) for good in (before, *after)] == [list(range(5))] * 3


def test_a_child_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5)
    with DecodePool(timeout_s=60) as pool:
        assert one(pool, path).status == "ok"
        os.kill(pool._children[0].process.pid, signal.SIGKILL)
        assert numbers(one(pool, path)) == list(range(5))


def test_ctrl_c_which_reaches_every_process_of_a_terminal_ends_no_child(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=5)
    with DecodePool(timeout_s=60) as pool:
        assert one(pool, path).status == "ok"
        child = pool._children[0].process.pid
        os.kill(child, signal.SIGINT)
        assert numbers(one(pool, path)) == list(range(5))
        assert pool._children[0].process.pid == child


def test_nothing_is_left_behind_by_deaths_and_closing(tmp_path: Path) -> None:
    shared, mine = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    with DecodePool(timeout_s=60, reader=BAD) as pool:
        for name in ("half", "a", "segfault"):
            pool.decode([DecodeRequest(uri=str(encode(tmp_path / f"{name}.mp4", frames=5)))])
        children = [c.process.pid for c in pool._children]
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert len(os.listdir("/proc/self/fd")) == mine
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if "frames" in name}


def test_frames_outlive_the_pool_that_made_them(tmp_path: Path) -> None:
    decoded = decode_segment(str(encode(tmp_path / "clip.mp4", frames=20)), size=(64, 64))
    assert numbers(decoded) == list(range(20))


@pytest.mark.parametrize("name", ["idle", "hang"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / f"{name}.mp4", frames=5)
    program = (
        "import sys; from tasks.decode import *\n"
        f"pool = DecodePool(timeout_s=600, reader={BAD!r})\n"
        "print(pool._children[0].process.pid, flush=True)\n"
        f"pool.decode([DecodeRequest(uri={str(path)!r})]); print('decoded', flush=True); sys.stdin.read()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if name == "idle":
        assert parent.stdout.readline() == "decoded\n"
    else:
        while not Path(f"{path}.entered").exists():
            time.sleep(0.02)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet collected by its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_child_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=2)
    with DecodePool(timeout_s=60) as pool:
        assert one(pool, path).status == "ok"
        maps = Path(f"/proc/{pool._children[0].process.pid}/maps").read_text()
    assert "cv2" in maps
    assert not [library for library in ("libtorch", "_raylet", "libarrow") if library in maps]


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_randomly_damaged_videos_end_in_frames_or_a_kind(pool: DecodePool, tmp_path: Path, codec: str) -> None:
    rng = np.random.default_rng(len(codec))
    suffix = {"vp9": ".webm", "mpeg4": ".avi", "av1": ".mkv"}.get(codec, ".mp4")
    whole = encode(tmp_path / f"whole{suffix}", codec, frames=30)
    requests = []
    for index in range(int(os.environ.get("PTHNET_MUTATIONS", "40")) // 5):
        path = tmp_path / f"{index}{suffix}"
        path.write_bytes(whole.read_bytes())
        requests.append(DecodeRequest(uri=str(videos.mutate(path, rng)), size=(48, 48)))
    decoded = pool.decode(requests)
    assert len(decoded) == len(requests)
    for result in decoded:
        assert (result.status == "ok") == (result.frames is not None) == (result.kind is None)
        if result.frames is not None:
            assert result.frames.shape == (result.num_frames, 48, 48, 3)
        else:
            assert result.detail
    assert pool.decode([DecodeRequest(uri=str(whole))])[0].status == "ok"
