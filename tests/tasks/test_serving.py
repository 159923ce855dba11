"""Requests: what is scored, and what is refused with which status and words."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.serving import Limits, Refusal, Scorer, allowed_video, read_request
from tests.predicted import small_bundle, some_scores

BUNDLE = small_bundle()
LIMITS = Limits(bytes=1 << 20, instances=3, windows=50)


def body(*instances: Any) -> bytes:
    return json.dumps({"instances": list(instances)}).encode()


def matrix(windows: int = 2, dim: int = 16) -> list[list[float]]:
    return np.random.default_rng(0).normal(size=(windows, dim)).tolist()


def test_a_request_scores_as_a_prediction_does_in_both_spellings(device: str) -> None:
    scores, clips = some_scores(BUNDLE, [5, 40, 260])
    asked = []
    for index in range(3):
        own = slice(scores.offsets[index], scores.offsets[index + 1])
        packed = {
            name: {
                "shape": list(given.features[own].shape),
                "float32": base64.b64encode(given.features[own].astype("<f4").tobytes()).decode(),
            }
            for name, given in clips.items()
        }
        plain = {name: given.features[own].tolist() for name, given in clips.items()}
        read = [read_request(body(each), BUNDLE, Limits()).instances[0] for each in (packed, plain)]
        for one in read:
            np.testing.assert_array_equal(one["reverse"], clips["reverse"].features[own])  # type: ignore[index]
        asked.append(read[0])
    found = Scorer(BUNDLE, device)(asked)  # type: ignore[arg-type]
    for row, answer in zip(scores.clip["fused"], found, strict=True):
        np.testing.assert_allclose(list(answer["probabilities"].values()), row, atol=1e-5)
        assert answer["expression"] == BUNDLE.classes[row.argmax()]
        assert answer["confidence"] == pytest.approx(row.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[]", 422, "instances"),
        (body(), 422, "at least one"),
        (body(1), 422, "instance 0 must be an object"),
        (body({"forward": matrix()}), 422, "lacks reverse"),
        (body({"forward": matrix(), "reverse": "none"}), 422, "no matrix"),
        (body({"forward": matrix(), "reverse": [[1], [1, 2]]}), 422, "no matrix"),
        (body({"forward": matrix(), "reverse": {"shape": [2, 16], "float32": "****"}}), 422, "no matrix"),
        (body({"forward": matrix(), "reverse": {"shape": [9, 16], "float32": "AAAA"}}), 422, "no matrix"),
        (body({"forward": matrix(), "reverse": matrix(dim=17)}), 422, r"\[windows, 16\]"),
        (body({"forward": matrix(), "reverse": matrix(3)}), 422, "different numbers"),
        (body({"forward": matrix(), "reverse": [[float("nan")] * 16] * 2}), 422, "NaN"),
        (body({"forward": matrix(60), "reverse": matrix(60)}), 413, "60 windows"),
        (body(*[{"forward": matrix(), "reverse": matrix()}] * 4), 413, "3 instances"),
        (b" " * (1 << 20) + b"1", 413, "bytes"),
        (body({"video": "a.mp4"}), 403, "--videos"),
    ],
)
def test_a_bad_request_is_refused_in_words(sent: bytes, status: int, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        read_request(sent, BUNDLE, LIMITS)
    assert refused.value.status == status


def test_only_videos_below_the_folders_named_may_be_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "videos", tmp_path / "secret.mp4"
    inside.mkdir()
    outside.touch()
    (inside / "link.mp4").symlink_to(outside)
    limits = Limits(videos=(str(inside), "s3://bucket/clips"))
    assert allowed_video("a/b.mp4", limits) == str(inside / "a" / "b.mp4")
    assert allowed_video(str(inside / "c.mp4"), limits) == str(inside / "c.mp4")
    assert allowed_video("s3://bucket/clips/d.mp4", limits) == "s3://bucket/clips/d.mp4"
    for bad in ("../secret.mp4", str(outside), "link.mp4", ".", "s3://bucket/clips-2/d.mp4", "s3://bucket/clips/../x"):
        with pytest.raises(Refusal) as refused:
            allowed_video(bad, limits)
        assert refused.value.status == 403
    for bad in (7, "", None, "a\0b"):
        with pytest.raises(Refusal) as refused:
            allowed_video(bad, limits)
        assert refused.value.status == 422
