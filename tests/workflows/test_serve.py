"""`pthnet serve` on a real Ray: it answers by features and by video, refuses in words, and stands a crowd."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks.direct import direct_extractor
from tasks.serving import Limits
from tests import videos
from tests.pipeline import local_ray
from tests.predicted import small_bundle
from tests.servers import free_port
from workflows import serve, serve_app


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    from ray import serve as ray_serve

    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    small_bundle(folder / "model", tiny=True)
    videos.encode(folder / "videos" / "a.mp4", frames=40)
    (folder / "videos" / "broken.mp4").write_bytes(b"nothing")
    with local_ray():
        limits = Limits(bytes=1 << 20, videos=(str(folder / "videos"),))
        serve.start(str(folder / "model"), port=port, limits=limits, device="cpu")
        yield f"http://127.0.0.1:{port}", folder
        ray_serve.shutdown()


def ask(address: str, body: Any, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def packed(features: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {"shape": list(matrix.shape), "float32": base64.b64encode(matrix.astype("<f4").tobytes()).decode()}
        for name, matrix in features.items()
    }


def test_it_answers_and_refuses(server: tuple[str, Path]) -> None:
    address, folder = server
    assert ask(f"{address}/healthz", None)[1]["status"] == "ok"
    extractor = direct_extractor(small_bundle(tiny=True))
    features = extractor.features(str(folder / "videos" / "a.mp4"))
    extractor.close()
    status, both = ask(f"{address}/predict", {"instances": [packed(features), {"video": "a.mp4"}]})
    assert status == 200
    by_features, by_video = both["predictions"]
    assert by_features["expression"] == by_video["expression"]
    assert by_features["probabilities"] == pytest.approx(by_video["probabilities"], abs=1e-5)
    for body, kind, expected in (
        (b"{", "application/json", 400),
        ({"instances": [{"video": "broken.mp4"}]}, "application/json", 422),
        ({"instances": [{"video": "gone.mp4"}]}, "application/json", 422),
        ({"instances": [{"video": "../model/model.json"}]}, "application/json", 403),
        (b"x" * (1 << 20) + b"x", "application/json", 413),
        (b"a=b", "application/x-www-form-urlencoded", 415),
    ):
        status, said = ask(f"{address}/predict", body, kind)
        assert (status, bool(said["error"])) == (expected, True)
    assert ask(f"{address}/elsewhere", None)[0] == 404
    assert ask(f"{address}/predict", None)[0] == 405


def test_a_crowd_of_32_clients_loses_no_request_and_everyone_gets_their_own_answer(server: tuple[str, Path]) -> None:
    address, _ = server
    rng = np.random.default_rng(0)
    dim = small_bundle(tiny=True).networks["forward"].config.in_dim
    asked = [packed({name: rng.normal(size=(3, dim)) for name in ("forward", "reverse")}) for _ in range(96)]
    with ThreadPoolExecutor(32) as crowd:
        together = list(crowd.map(lambda each: ask(f"{address}/predict", {"instances": [each]}), asked))
    assert {status for status, _ in together} == {200}
    alone = [ask(f"{address}/predict", {"instances": asked[start : start + 32]})[1] for start in range(0, 96, 32)]
    expected = [answer for part in alone for answer in part["predictions"]]
    for (_, found), wanted in zip(together, expected, strict=True):
        assert found["predictions"][0]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


def test_a_network_whose_process_dies_is_started_again_and_no_request_is_lost(server: tuple[str, Path]) -> None:
    address, _ = server
    dim = small_bundle(tiny=True).networks["forward"].config.in_dim
    body = {"instances": [packed({name: np.ones((3, dim)) for name in ("forward", "reverse")})]}
    _, before = ask(f"{address}/predict", body)
    # cmdline is None of a process that has ended and waits for its parent.
    running = psutil.process_iter(["cmdline"])
    beside = [process for process in running if "DirectionScorer" in "".join(process.info["cmdline"] or ())]
    assert beside
    for process in beside:
        process.kill()
    assert ask(f"{address}/predict", body) == (200, before)


@pytest.mark.parametrize(
    ("replicas", "gpus", "expected"),
    [(1, 1, 1.0), (2, 1, 0.5), (3, 1, 0.33), (2, 2, 1.0), (3, 2, 0.5), (2, 8, 1.0), (2, 0, 1.0)],
)
def test_replicas_share_the_gpus_there_are(replicas: int, gpus: int, expected: float) -> None:
    each = serve.gpus_each(replicas, gpus)
    assert each == expected
    if gpus:
        assert gpus * int(1 / each) >= replicas  # of parts that lie whole on a GPU


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, 0), ({"device": "cuda"}, 1.0), ({"device": "cuda", "replicas": 2, "gpus": 0.5}, 0.5)],
)
def test_a_serve_config_says_what_part_of_a_gpu_a_replica_gets(arguments: dict[str, Any], expected: float) -> None:
    app: Any = serve_app.build({"model": "runs/model", **arguments})
    assert app._bound_deployment.ray_actor_options["num_gpus"] == expected
