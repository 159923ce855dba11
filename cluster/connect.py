"""Where Ray runs: join the cluster that is named, or start one on this machine.

Order: the address given, RAY_ADDRESS, the cluster this job was submitted to, else a local Ray that listens on loopback only.
"""

import os
from typing import Any

from cluster.errors import ClusterError

LOOPBACK = "127.0.0.1"


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
    import ray

    if not ray.is_initialized():
        wanted = address or os.environ.get("RAY_ADDRESS")
        quiet = {"log_to_driver": False, "logging_level": "warning"}
        if wanted and wanted != "local":
            try:
                ray.init(address=wanted, **quiet)
            except ConnectionError as error:
                raise ClusterError(f"no Ray cluster answers at {wanted}: {error}; check the address or unset RAY_ADDRESS") from error
        else:
            # `_node_ip_address` because the public option resolves loopback to the outward address
            ray.init(
                address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet
            )
    return ray.cluster_resources()
