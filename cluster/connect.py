"""Where Ray runs: join the cluster that is named, or start one on this machine.

Order: the address given, RAY_ADDRESS (which a submitted job finds set to its own cluster), else a local Ray that
listens on loopback only.
"""

import logging
import os
import socket
from typing import Any

from cluster.errors import ClusterError

LOOPBACK = "127.0.0.1"
ANSWER_S = 10.0


def connect(address: str | None = None, *, num_cpus: int | None = None, num_gpus: int | None = None) -> dict[str, Any]:
    """Join or start Ray once per process; later calls return the same cluster's resources.

    Parameters
    ----------
    address
        "auto", "host:port" or "ray://host:port"; None reads RAY_ADDRESS, else starts a local Ray.
    num_cpus, num_gpus
        Only for a Ray started here; None counts the machine's.

    Returns
    -------
    dict
        The cluster's resources, as `ray.cluster_resources()` gives them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    wanted = address or os.environ.get("RAY_ADDRESS")
    on_this_machine = not wanted or wanted == "local"
    if on_this_machine:
        # Ray turns a loopback address into the outward one unless it is told that there is no cluster. Its processes
        # read that from the environment; here Ray may have been imported before.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Whether a token guards a cluster that only this machine reaches is no news worth four lines at every start.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    import ray

    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if wanted and not on_this_machine:
            _join(wanted, quiet)
        else:
            from ray._private import ray_constants

            ray_constants.ENABLE_RAY_CLUSTER = False
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                **quiet,
            )
    return ray.cluster_resources()


def node_resources() -> list[dict[str, float]]:
    """What every living node has, as `ray.nodes()` gives it: {"CPU": 16.0, "GPU": 2.0, ...}."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def smallest_node() -> float | None:
    """CPUs of the smallest node that has any, which is what an actor must fit to start anywhere; None without nodes."""
    sizes = [node.get("CPU", 0.0) for node in node_resources()]
    return min((float(size) for size in sizes if size), default=None)


def working_nodes() -> dict[str, Any]:
    """Options that keep what reserves no CPU off the nodes that have none: a cluster's head is not for work."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    idle = [node["NodeID"] for node in nodes if not node["Resources"].get("CPU")]
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(idle)})"}} if 0 < len(idle) < len(nodes) else {}


def _join(wanted: str, quiet: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    _answers(wanted)
    try:
        ray.init(address=wanted, **quiet)
    except AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {wanted} wants a token, or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "(or RAY_AUTH_TOKEN_PATH) to the cluster's"
        ) from error
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at {wanted} ({(str(error).splitlines() or ['no reason given'])[0]}); check the "
            "address or unset RAY_ADDRESS to use this machine"
        ) from error


def _answers(wanted: str) -> None:
    """Refuse an address where nothing listens within seconds; Ray itself would try for minutes."""
    host, colon, port = wanted.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {wanted} ({error}); check the address or unset RAY_ADDRESS to use this machine"
        ) from error
