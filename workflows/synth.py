"""Render a small labelled video archive of a drawn, moving face, with its lists: `pthnet synth DIR --seed 0`."""

import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from storage.errors import StorageError

MANIFEST = "manifest.json"


def synth(
    directory: Path,
    *,
    clips: int = 392,
    seed: int = 0,
    difficulty: Literal["easy", "hard"] = "easy",
    test_share: float = 0.25,
    folds: int = 0,
    workers: int | None = None,
) -> None:
    """Render a labelled archive of H.264 videos: seven expressions of a drawn face.

    Sad is Happy played backwards and Fear is Surprise played backwards, so only the direction of time tells them apart.
    What is already rendered is kept: the same command again does nothing, and a larger --clips adds clips.

    Parameters
    ----------
    directory
        Receives videos/<Class>/<number>.mp4, lists/train.txt, lists/test.txt ("<Class>/<number> <frames> <label>") and
        manifest.json.
    clips
        Number of clips; the classes take turns.
    seed
        Equal seeds give equal frames, whatever the number of workers.
    difficulty
        easy: the face fills the frame with a little jitter. hard: free position, size and background.
    test_share
        Share of every class that goes to the test list, between 0 and 1.
    folds
        With k > 1 also writes lists/set_1_train.txt, lists/set_1_test.txt, ... set_k.
    workers
        Processes that render; by default one per CPU.
    """
    from tasks.face import CLASSES
    from tasks.synth import SynthClip, plan_clip

    if clips < 1 or not 0.0 <= test_share <= 1.0 or folds < 0 or folds == 1:
        raise StorageError(
            f"synth needs clips >= 1, test_share in [0, 1] and folds 0 or >= 2; got clips={clips}, "
            f"test_share={test_share}, folds={folds}"
        )
    plan = [plan_clip(seed, index, difficulty) for index in range(clips)]

    def in_test(clip: SynthClip) -> bool:
        return int((clip.number + 1) * test_share + 1e-9) > int(clip.number * test_share + 1e-9)

    settings = {"seed": seed, "difficulty": difficulty, "classes": list(CLASSES)}
    _same_archive(directory / MANIFEST, settings)
    rows = [{**clip.summary(), "split": "test" if in_test(clip) else "train"} for clip in plan]
    _write(directory / MANIFEST, json.dumps({**settings, "clips": rows}, indent=1) + "\n")
    _render(plan, directory / "videos", workers or len(os.sched_getaffinity(0)))
    lists = directory / "lists"
    _write_list(lists / "train.txt", [c for c in plan if not in_test(c)])
    _write_list(lists / "test.txt", [c for c in plan if in_test(c)])
    for fold in range(folds):
        _write_list(lists / f"set_{fold + 1}_train.txt", [c for c in plan if c.number % folds != fold])
        _write_list(lists / f"set_{fold + 1}_test.txt", [c for c in plan if c.number % folds == fold])


def _same_archive(manifest: Path, settings: dict) -> None:
    """Refuse to mix two archives in one directory."""
    if not manifest.exists():
        return
    try:
        found = json.loads(manifest.read_text())
    except ValueError as error:
        raise StorageError(f"{manifest} is no manifest of an archive ({error}); choose another directory") from None
    differing = [k for k in settings if not isinstance(found, dict) or found.get(k) != settings[k]]
    if differing:
        raise StorageError(
            f"{manifest.parent} holds an archive with another {' and '.join(differing)}; "
            "choose another directory or remove this one"
        )


def _render(plan: list, videos: Path, workers: int) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tasks.synth import render_clip

    missing = [clip for clip in plan if not (videos / f"{clip.clip_id}.mp4").exists()]
    if not missing:
        return
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Spawned, not forked: the caller may hold threads (Ray, torch) that a fork would leave with locked locks.
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=get_context("spawn"), initializer=_leave_ctrl_c_to_the_parent
    )
    with Progress(*columns, transient=True, disable=not _on_a_terminal()) as progress:
        bar = progress.add_task("rendering", total=len(plan), completed=len(plan) - len(missing))
        try:
            for done in as_completed([pool.submit(render_clip, clip, videos) for clip in missing]):
                done.result()
                progress.advance(bar)
        finally:
            pool.shutdown(cancel_futures=True)


def _on_a_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_list(path: Path, clips: list) -> None:
    _write(path, "".join(f"{clip.clip_id} {clip.num_frames} {clip.label}\n" for clip in clips))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text)
    os.replace(unfinished, path)
