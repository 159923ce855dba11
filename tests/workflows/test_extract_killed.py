"""Drivers killed, interrupted, overtaken or without disk space: the same command again finishes the work, once."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.pipeline import OPTIONS, account, assert_nothing_to_do, extract_all, local_ray, many
from tests.videos import encode

HELD_UP = ["00", "01", "02", "03", "hang"]
PATIENCE_S = 120.0  # for an event on a machine under load; no test waits this long when all is well


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


class Driver:
    """A `tests.driver` process in a session of its own, as a shell would start it."""

    def __init__(
        self, cue: str, videos: Path, features: Path, address: str | None = None, *, within: Sequence[str] = ()
    ) -> None:
        self.videos, self.features = videos, features
        self.token = secrets.token_hex(8)
        self.turn = videos.parent / f"turn-{self.token}"
        root = Path(__file__).resolve().parents[2]
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        env |= {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]), "PTHNET_TEST": self.token}
        if address:
            env |= {"RAY_ADDRESS": address, "PTHNET_TURN": str(self.turn)}
        program = [sys.executable, "-m", "tests.driver", cue]
        command = [
            *within,
            *program,
            "extract",
            str(videos),
            "--features",
            str(features),
            *OPTIONS,
            "--decode-timeout",
            "3600",
        ]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def go(self) -> None:
        """Let one that joined a running Ray begin."""
        self.turn.touch()

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said on stderr."""
        _, said = self.process.communicate(timeout=PATIENCE_S * 2)
        return self.process.returncode, said

    def family(self) -> list[int]:
        """Living processes that it started, by a variable they inherited."""
        mark = f"PTHNET_TEST={self.token}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:  # ended meanwhile, or not ours
                continue
        return found

    def clear(self) -> None:
        """Leave nothing behind, however the test ended."""
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def on_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """Drivers with a local Ray each, started first of all and side by side: most of their time is Ray's start."""
    started = {}
    try:
        for name in ("interrupted", "killed"):
            folder = tmp_path_factory.mktemp(name)
            started[name] = Driver("reader", many(folder / "v", HELD_UP), folder / "t")
        folder = tmp_path_factory.mktemp("full")
        disk = folder / "disk"
        disk.mkdir()
        for i in range(12):
            encode(folder / "v" / f"{i:02d}.mp4", frames=20 + i)
        # A disk of its own, in a name space that ends with the process: nothing to unmount, and no need to be root.
        script = f'mount -t tmpfs -o size=1m none {disk} && "$@" && cp -r {disk}/t {folder}/copied'
        within = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        started["full"] = Driver(f"full:{disk / 'ballast'}", folder / "v", disk / "t", within=within)
        yield started
    finally:
        for driver in started.values():
            driver.clear()


DYING = ("before:1", "between:1", "after:1")


@pytest.fixture(scope="module", autouse=True)
def in_turn(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """Drivers that share one Ray, started side by side too; each begins when it is told to."""
    started = {}
    try:
        folder = tmp_path_factory.mktemp("dying")
        archive(folder / "v")
        for cue in DYING:
            started[cue] = Driver(cue, folder / "v", folder / "t", cluster)
        folder = tmp_path_factory.mktemp("slow")
        archive(folder / "v")
        started["slow"] = Driver(f"wait:{folder / 'cue'}", folder / "v", folder / "t", cluster)
        yield started
    finally:
        for driver in started.values():
            driver.clear()


def until(event: Callable[[], bool], driver: Driver | None = None) -> None:
    """Wait for something to happen; a driver that ends meanwhile will not bring it about."""
    deadline = time.monotonic() + PATIENCE_S
    while not event():
        assert driver is None or driver.process.poll() is None, driver.ended()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


GOOD = [f"{i:02d}" for i in range(12)]
WANTED = dict.fromkeys(GOOD, "features") | {"!bad": "decode_error", "~bad": "decode_error"}


def archive(folder: Path) -> None:
    """Good clips and two bad ones, the first and the last."""
    many(folder, GOOD)
    for name in ("!bad", "~bad"):
        (folder / f"{name}.mp4").write_text("no video")


def test_a_driver_killed_again_and_again_leaves_every_clip_exactly_once(in_turn: dict[str, Driver]) -> None:
    videos, table = in_turn[DYING[0]].videos, in_turn[DYING[0]].features
    seen: list[set[str]] = []
    # Before the first commit; with features visible and their failures not; between two commits, after the first.
    for cue in DYING:
        in_turn[cue].go()
        code, said = in_turn[cue].ended()
        assert code == -signal.SIGKILL, said
        found = account(table)
        assert found.items() <= WANTED.items()
        seen.append(set(found))
    assert not seen[0]
    assert seen[1]
    assert not seen[1] & {"!bad", "~bad"}
    assert seen[1] < seen[2]
    report = extract_all(videos, table)
    assert report.done + sum(report.failed.values()) == len(WANTED) - len(seen[2])
    assert account(table) == WANTED
    assert_nothing_to_do(videos, table, times=20)


def test_of_two_runs_at_once_one_is_fenced_out_and_nothing_is_lost(
    in_turn: dict[str, Driver],
) -> None:
    slow = in_turn["slow"]
    videos, table = slow.videos, slow.features
    slow.go()
    until((videos.parent / "cue.here").exists, slow)
    extract_all(videos, table)
    assert account(table) == WANTED
    (videos.parent / "cue.go").touch()
    code, said = slow.ended()
    assert code == 2
    assert "another run of 'pthnet/" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert account(table) == WANTED
    assert_nothing_to_do(videos, table)


def test_ctrl_c_ends_a_run_and_its_local_ray_and_the_same_command_resumes(
    on_their_own: dict[str, Driver], cluster: str
) -> None:
    driver = on_their_own["interrupted"]
    videos, table = driver.videos, driver.features
    until((videos / "hang.mp4.entered").exists, driver)
    os.killpg(driver.process.pid, signal.SIGINT)  # it reaches every process of the terminal's foreground
    code, said = driver.ended()
    assert code == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command resumes"
    assert "Traceback" not in said
    check_resumed(driver, videos, table)


def test_a_killed_driver_takes_its_local_ray_along_and_the_same_command_resumes(
    on_their_own: dict[str, Driver], cluster: str
) -> None:
    driver = on_their_own["killed"]
    videos, table = driver.videos, driver.features
    until((videos / "hang.mp4.entered").exists, driver)
    driver.process.kill()
    assert driver.ended()[0] == -signal.SIGKILL
    check_resumed(driver, videos, table)


def check_resumed(driver: Driver, videos: Path, table: Path) -> None:
    until(lambda: not driver.family())
    assert set(account(table).values()) <= {"features"}
    (videos / "hang.mp4.entered").unlink()
    extract_all(videos, table)
    assert account(table) == dict.fromkeys(HELD_UP, "features")
    assert_nothing_to_do(videos, table)


def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(
    on_their_own: dict[str, Driver], cluster: str
) -> None:
    driver = on_their_own["full"]
    code, said = driver.ended()
    assert code == 0, said
    assert "filled: [Errno 28] No space left on device" in said
    lines = said.splitlines()
    first = lines.index("first: 2")
    assert lines[first - 1].startswith("pthnet: ")
    assert "no space left" in lines[first - 1].lower()
    assert "Traceback" not in said
    table = driver.features.parent.parent / "copied"
    assert account(table) == {f"{i:02d}": "features" for i in range(12)}
    assert not list(table.rglob("*.tmp"))
    assert_nothing_to_do(driver.videos, table)
