"""Latency and throughput of `pthnet serve`, asked by features over HTTP on loopback.

python -m benchmarks.serve --requests 400 --clients 32
python -m benchmarks.serve --device cuda --name serve-cuda
"""

import base64
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)
PATIENCE_S = 180.0
WARM_UP = 20
_connections = threading.local()


@app.default
def main(
    *,
    requests: int = 400,
    clients: int = 32,
    windows: int = 10,
    port: int = 8713,
    device: str = "auto",
    name: str = "serve",
) -> None:
    """Serve a model of the published size with random weights; ask one after another, then from many clients at once.

    Parameters
    ----------
    requests
        In each of the two parts.
    clients
        That ask at once in the second part.
    windows
        Of a clip, 1408 numbers each and direction, sent as base64.
    port
        On loopback.
    device
        As for `pthnet serve`: auto takes a GPU where there is one.
    name
        Of the page below benchmarks/results.
    """
    with tempfile.TemporaryDirectory() as folder:
        published_size(Path(folder) / "model")
        command = [sys.executable, "-m", "workflows.cli", "serve", "--model", f"{folder}/model", "--port", str(port)]
        server = subprocess.Popen([*command, "--device", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(port)
            for body in bodies(WARM_UP, windows):
                ask(port, body)
            asked = bodies(requests, windows)
            began = time.perf_counter()
            alone = [ask(port, body) for body in asked]
            one = row("1", alone, time.perf_counter() - began)
            with ThreadPoolExecutor(clients) as crowd:
                began = time.perf_counter()
                together = list(crowd.map(lambda body: ask(port, body), asked))
            many = row(str(clients), together, time.perf_counter() - began)
        finally:
            server.terminate()
            server.wait()
    header = ["clients", "requests/s", "p50 ms", "p99 ms", "failed"]
    notes = [
        f"{requests} requests a row; each a clip of {windows} windows of 1408 numbers, forward and reverse; "
        f"device {device}.",
        "",
    ]
    keep(name, table("Serving features", header, [one, many], notes))


def published_size(folder: Path) -> None:
    """A fused model of the published size, seven classes, random weights."""
    import torch

    from pthnet.pth_net import PTHNet, PTHNetConfig
    from tasks.bundle import Bundle, save_bundle

    torch.manual_seed(0)
    networks = {direction: PTHNet(PTHNetConfig(in_dim=1408, num_classes=7)) for direction in ("forward", "reverse")}
    classes = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    save_bundle(Bundle(networks=networks, mu=0.7, classes=classes, extractor={}, extractor_id="random"), folder)


def bodies(count: int, windows: int) -> list[bytes]:
    """Requests, each another clip."""
    rng = np.random.default_rng(0)

    def packed() -> dict[str, object]:
        matrix = rng.standard_normal((windows, 1408)).astype("<f4")
        return {"shape": list(matrix.shape), "float32": base64.b64encode(matrix.tobytes()).decode()}

    return [json.dumps({"instances": [{"forward": packed(), "reverse": packed()}]}).encode() for _ in range(count)]


def ask(port: int, body: bytes) -> tuple[float, bool]:
    """Seconds to the answer, and whether it was one; a client keeps its connection."""
    began = time.perf_counter()
    if not hasattr(_connections, "open"):
        _connections.open = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection: http.client.HTTPConnection = _connections.open
    connection.request("POST", "/predict", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    good = answer.status == 200 and "predictions" in json.loads(answer.read())
    return time.perf_counter() - began, good


def wait(port: int) -> None:
    """Until the server says that it is well."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            connection.close()
    raise RuntimeError(f"the server did not answer for {PATIENCE_S:.0f} s")


def row(clients: str, answers: list[tuple[float, bool]], seconds: float) -> list[str]:
    """A line of the table."""
    times = sorted(1000 * spent for spent, _ in answers)
    middle, late = statistics.median(times), times[int(0.99 * (len(times) - 1))]
    failed = sum(not good for _, good in answers)
    return [clients, f"{len(answers) / seconds:.0f}", f"{middle:.1f}", f"{late:.1f}", str(failed)]


if __name__ == "__main__":
    app()
