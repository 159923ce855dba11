"""Serve a model over HTTP on Ray Serve: `pthnet serve --model models:/NAME@champion`.

POST /predict {"instances": [{"forward": [[...]], "reverse": [[...]]}]}, or [{"video": "clip.mp4"}] below --videos
GET  /healthz

Requests that arrive together are scored together. It listens on loopback unless --host says otherwise; there is no
login, so put it behind something that has one before others can reach it.
"""

import asyncio
import contextlib
import math
import os
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ray.serve import Application

    from tasks.serving import Limits

GATHER_S = 0.005  # while several requests are here, the first of a batch waits so long for those still being read
MESSAGE_BYTES = 4 << 20  # the features of a clip travel within Ray's messages, not by way of its object store


def serve(
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    videos: tuple[str, ...] = (),
    tracking_uri: str | None = None,
    weights: str | None = None,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    replicas: int = 1,
    cpus: float | None = None,
    max_batch: int = 32,
    batch_wait: float = 0.0,
    max_waiting: int = 256,
    max_request_mb: int = 32,
    address: str | None = None,
) -> int:
    """Serve a model until interrupted.

    Parameters
    ----------
    model
        models:/NAME@champion, models:/NAME/VERSION, or the folder of a trained model.
    host
        Where to listen.
    port
        On which port.
    videos
        Folder or s3:// prefix whose videos a request may name; may be given several times. Without it: features only.
    tracking_uri
        MLflow that knows the model; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.
    weights
        The backbone's weights, when they are not where the model remembers them.
    device
        Where backbone and model run.
    replicas
        Copies of the model; by default they share all cores and GPUs there are.
    cpus
        Cores of each.
    max_batch
        Most instances scored at once.
    batch_wait
        Seconds the first of them waits for others even when it is alone; in a crowd it waits a few milliseconds anyway.
    max_waiting
        Requests that may wait; further ones get 503.
    max_request_mb
        Largest request.
    address
        Ray cluster; by default RAY_ADDRESS, else this machine.
    """
    import signal
    import threading

    from ray import serve as ray_serve

    from tasks.serving import Limits

    limits = Limits(bytes=max_request_mb << 20, videos=tuple(videos))
    start(
        model,
        host=host,
        port=port,
        limits=limits,
        tracking_uri=tracking_uri,
        weights=weights,
        device=device,
        replicas=replicas,
        cpus=cpus,
        max_batch=max_batch,
        batch_wait=batch_wait,
        max_waiting=max_waiting,
        address=address,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has started, which puts handlers of its own there
        signal.signal(number, lambda *_: stop.set())
    print(f"serving {model} at http://{host}:{port}; Ctrl-C ends it", flush=True)
    stop.wait()
    ray_serve.shutdown()
    return 0


def start(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: "Limits | None" = None,
    tracking_uri: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    replicas: int = 1,
    cpus: float | None = None,
    max_batch: int = 32,
    batch_wait: float = 0.0,
    max_waiting: int = 256,
    address: str | None = None,
) -> None:
    """Start the deployment and return when it answers; parameters as in `serve`.

    Raises
    ------
    ModelError, ClusterError
        When there is no such model or cluster.
    """
    from ray import serve as ray_serve

    from cluster.connect import connect
    from tasks.model_source import load_model, registry_uri
    from tasks.serving import Limits

    os.environ.setdefault("RAY_max_direct_call_object_size", str(MESSAGE_BYTES))  # for a Ray that starts here
    load_model(model, tracking_uri)  # refused here, in one line, rather than by a replica that restarts for ever
    found = registry_uri(tracking_uri) if model.startswith("models:/") else None
    resources = connect(address)
    on_gpu = device == "cuda" or (device == "auto" and resources.get("GPU", 0) > 0)
    share = cpus or max(1.0, resources.get("CPU", 1) // replicas)
    ray_serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
    app = application(
        model,
        tracking_uri=found,
        weights=weights,
        device="cuda" if on_gpu else "cpu",
        limits=limits or Limits(),
        max_batch=max_batch,
        batch_wait=batch_wait,
        options={
            "num_replicas": replicas,
            "max_ongoing_requests": 4 * max_batch,
            "max_queued_requests": max_waiting,
            "ray_actor_options": {
                "num_cpus": share,
                "num_gpus": gpus_each(replicas, resources.get("GPU", 0)) if on_gpu else 0,
            },
        },
    )
    ray_serve.run(app, name="pthnet", route_prefix="/")


def gpus_each(replicas: int, gpus: float) -> float:
    """GPUs that each replica asks Ray for: one, or where there are fewer than replicas a part that lets all start.

    A whole one too where there is none yet, which a cluster that grows may bring.
    """
    from workflows.fits import part_of_gpu

    sharers = math.ceil(replicas / int(gpus)) if gpus >= 1 else 1
    return part_of_gpu(sharers)


def application(
    model: str,
    *,
    tracking_uri: str | None,
    weights: str | None,
    device: str,
    limits: "Limits",
    max_batch: int,
    batch_wait: float,
    options: dict[str, Any],
) -> "Application":
    """The Ray Serve application; also what a Serve config file of one's own cluster can import."""
    from ray import serve as ray_serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    @ray_serve.deployment(name="Expressions", **options)
    class Expressions:
        def __init__(self) -> None:
            import ray
            import torch

            from pthnet.matmul import exact_float32, use_fastest_exact_matmul
            from tasks.direct import DirectExtractor
            from tasks.model_source import load_model
            from tasks.serving import Scorer

            use_fastest_exact_matmul(device)  # this process does nothing else
            # For good: a thread that extracts and one that scores would undo each other's, as the setting is global.
            self.exact = contextlib.ExitStack()
            self.exact.enter_context(exact_float32(device))
            self.bundle = load_model(model, tracking_uri)
            self.scorer = Scorer(self.bundle, device)
            cores, directions = int(options["ray_actor_options"]["num_cpus"]), list(self.bundle.networks)
            apart = directions[1:] if device == "cpu" and cores >= len(directions) else []
            threads = max(1, cores // (1 + len(apart)))
            torch.set_num_threads(threads)
            # Held here, so that a network whose process dies can be started from it again.
            self.stored = {name: ray.put(self.bundle.networks[name]) for name in apart}
            self.beside = {name: _beside(stored, self.bundle.level, threads) for name, stored in self.stored.items()}
            self.extractor: DirectExtractor | None = None
            self.open = 0

        @ray_serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=batch_wait)
        async def score(self, instances: list[Any]) -> list[Any]:
            slots = {name: self.scorer.slots(instances, name) for name in self.bundle.networks}
            running = {name: actor.logits.remote(slots[name]) for name, actor in self.beside.items()}
            # On the event loop itself, which has nothing better to do: a thread beside it would contend with it for the
            # interpreter. What arrives meanwhile is the next batch.
            here = [name for name in slots if name not in running]
            logits = {name: self.scorer.networks[name].logits(slots[name]) for name in here}
            return self.scorer.answers({**logits, **{name: await found for name, found in running.items()}})

        async def __call__(self, request: Request) -> JSONResponse:
            from pthnet.errors import ModelError
            from tasks.serving import Refusal

            self.open += 1
            try:
                return JSONResponse(await self.answer(request))
            except Refusal as refusal:
                return JSONResponse({"error": str(refusal)}, status_code=refusal.status)
            except ModelError as error:  # a clip that cannot be decoded, or is too long
                return JSONResponse({"error": str(error)}, status_code=422)
            finally:
                self.open -= 1

        async def answer(self, request: Request) -> dict[str, Any]:
            from tasks.serving import Refusal, read_request

            path = request.url.path.rstrip("/") or "/"
            if path in ("/healthz", "/"):
                return {
                    "status": "ok",
                    "model": model,
                    "classes": list(self.bundle.classes),
                    "predict": "POST /predict",
                }
            if path != "/predict":
                raise Refusal(404, f"there is no {path[:100]}; POST to /predict, GET /healthz")
            if request.method != "POST":
                raise Refusal(405, f"/predict takes POST, not {request.method}")
            kind = request.headers.get("content-type", "application/json").split(";")[0].strip()
            if kind != "application/json":
                raise Refusal(415, f"/predict takes application/json, not {kind[:100]}")
            asked = read_request(await self.body(request), self.bundle, limits)
            instances = [
                await asyncio.to_thread(self.extracted, each) if isinstance(each, str) else each
                for each in asked.instances
            ]
            batches: Any = self.score  # which the decorator gave its settings
            batches.set_batch_wait_timeout_s(batch_wait if self.open == 1 else max(batch_wait, GATHER_S))
            return {"predictions": await asyncio.gather(*(self.score(each) for each in instances))}

        async def body(self, request: Request) -> bytes:
            from tasks.serving import Refusal

            too_long = Refusal(413, f"a request may have {limits.bytes} bytes; send fewer instances")
            declared = request.headers.get("content-length", "0")
            if declared.isdigit() and int(declared) > limits.bytes:
                raise too_long
            parts, size = [], 0
            async for part in request.stream():
                size += len(part)
                if size > limits.bytes:
                    raise too_long
                parts.append(part)
            return b"".join(parts)

        def extracted(self, video: str) -> Any:
            if self.extractor is None:
                from tasks.direct import direct_extractor

                self.extractor = direct_extractor(self.bundle, weights=weights, device=device)
            return self.extractor.features(video, self.bundle.level)

    deployment: Any = Expressions  # the decorator made a Deployment of the class
    return deployment.bind()


def _beside(network: Any, level: str, threads: int) -> Any:
    """A process on this node that scores one direction (its network in Ray's store) while its caller scores another.

    A clip's networks are thousands of operations of microseconds: two threads of one process would spend more time
    handing the interpreter to each other than they gain. On a GPU there are none of these: the replica scores both.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tasks.serving import DirectionScorer

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(DirectionScorer)
    lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 2, "scheduling_strategy": here}
    return actor.options(**lasting).remote(network, level, "cpu", threads)
