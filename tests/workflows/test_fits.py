"""How trainings share a cluster."""

import pytest

from cluster.errors import ClusterError
from workflows.fits import FitPlan, plan_fits


@pytest.mark.parametrize(
    ("count", "resources", "workers", "expected"),
    [
        (2, {"CPU": 1}, None, FitPlan(workers=1, cpus=1, gpus=0, at_once=1)),
        (2, {"CPU": 2}, None, FitPlan(workers=2, cpus=0.5, gpus=0, at_once=2)),  # side by side on two cores
        (2, {"CPU": 16}, None, FitPlan(workers=2, cpus=4, gpus=0, at_once=2)),
        (10, {"CPU": 16}, None, FitPlan(workers=2, cpus=1, gpus=0, at_once=8)),
        (10, {"CPU": 64, "GPU": 8}, None, FitPlan(workers=1, cpus=8, gpus=1, at_once=8)),
        (2, {"CPU": 64, "GPU": 8}, 4, FitPlan(workers=4, cpus=8, gpus=1, at_once=2)),
        (52, {"CPU": 4, "GPU": 1}, None, FitPlan(workers=1, cpus=4, gpus=1, at_once=1)),
    ],
)
def test_trainings_share_the_cluster(
    count: int, resources: dict[str, float], workers: int | None, expected: FitPlan
) -> None:
    assert plan_fits(count, resources, workers) == expected


def test_a_plan_never_asks_for_more_than_there_is() -> None:
    for count in range(1, 12):
        for cpus in range(1, 70):
            plan = plan_fits(count, {"CPU": cpus})
            assert plan.cpus * plan.workers * plan.at_once <= cpus + 1e-9
            assert plan.cpus > 0


def test_more_workers_than_devices_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"4 workers need as many GPUs; the cluster has 1\. Lower --workers"):
        plan_fits(2, {"CPU": 8, "GPU": 1}, 4)
    with pytest.raises(ClusterError, match="neither a CPU nor a GPU"):
        plan_fits(2, {})
