"""The served model as a Serve config file names it: `import_path: workflows.serve_app:build`.

What a RayService runs (`pthnet manifests rayservice`), or `serve deploy` on a cluster of your own; `pthnet serve`
needs none of this.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

MAX_BATCH = 32
MAX_WAITING = 256


def build(arguments: dict[str, Any]) -> "Application":
    """The application of a Serve config's `args`.

    Parameters
    ----------
    arguments
        model: models:/NAME@champion or a folder; and, as for `pthnet serve`: weights, videos (a list), device (cpu or
        cuda), replicas, cpus. gpus: of each replica on cuda, 1 by default; 0.5 lets two share one. It is not worked out
        from what the cluster has, which may grow for the replicas. The registry is MLFLOW_TRACKING_URI's.

    Raises
    ------
    ClusterError
        An argument that is not one of these, or no model.
    """
    from cluster.errors import ClusterError
    from tasks.model_source import registry_uri
    from tasks.serving import Limits
    from workflows.serve import application

    known = {"model", "weights", "videos", "device", "replicas", "cpus", "gpus"}
    wrong = sorted(set(arguments) - known)
    if wrong or "model" not in arguments:
        raise ClusterError(
            f"args of the Serve config take model and {sorted(known - {'model'})}; found {sorted(arguments)}"
        )
    model, device = str(arguments["model"]), str(arguments.get("device", "cpu"))
    return application(
        model,
        tracking_uri=registry_uri(None) if model.startswith("models:/") else None,
        weights=arguments.get("weights"),
        device=device,
        limits=Limits(videos=tuple(arguments.get("videos", ()))),
        max_batch=MAX_BATCH,
        batch_wait=0.002,
        options={
            "num_replicas": int(arguments.get("replicas", 1)),
            "max_ongoing_requests": 4 * MAX_BATCH,
            "max_queued_requests": MAX_WAITING,
            "ray_actor_options": {
                "num_cpus": float(arguments.get("cpus", 1)),
                "num_gpus": float(arguments.get("gpus", 1)) if device == "cuda" else 0,
            },
        },
    )
