"""When a run's pools no longer fit the cluster, and how long that must last."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.pools import Pools, pool_sizes
from cluster.resizing import Patience, PoolsMisfit, joined, lost, watch


def nodes(count: int, gpus: int = 0) -> dict[str, float]:
    """A cluster of nodes with two CPUs each."""
    return {"CPU": 2.0 * count, "GPU": float(gpus)}


def pools(count: int, gpus: int = 0) -> Pools:
    return pool_sizes(nodes(count, gpus), node_cpus=2, together=True)


def test_a_cluster_that_is_what_the_pools_were_sized_for_fits() -> None:
    for count in (1, 2, 3, 50):
        assert not lost(pools(count), nodes(count))
        assert not joined(pools(count), pools(count))


def test_one_lost_node_of_a_cpu_cluster_is_one_actor_too_many() -> None:
    assert lost(pools(3), nodes(2))


def test_without_any_node_there_is_nothing_to_size_for_and_the_run_waits() -> None:
    assert not lost(pools(3), nodes(0))
    assert not lost(pools(4, gpus=4), nodes(4, gpus=0))


def test_lost_gpus_are_too_many_actors_and_lost_decode_nodes_are_not() -> None:
    assert lost(pools(8, gpus=4), nodes(8, gpus=2))
    assert not lost(pools(8, gpus=4), nodes(6, gpus=4))


def test_a_few_nodes_more_are_not_worth_starting_again_and_a_quarter_is() -> None:
    assert not joined(pools(50), pools(55))
    assert joined(pools(50), pools(63))
    assert joined(pools(1), pools(2))


def test_a_run_on_cpus_does_not_move_to_gpus_halfway() -> None:
    assert not joined(pools(2), replace(pools(8), device="cuda"))


def test_a_misfit_ends_the_execution_once_it_has_lasted_and_its_actors_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    now, size, killed = [0.0], [3], []
    monkeypatch.setattr("cluster.resizing.time.monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: nodes(size[0]))
    pool = SimpleNamespace(shutdown=lambda force: killed.append(force))
    executor = SimpleNamespace(_topology=[SimpleNamespace(get_autoscaling_actor_pools=lambda: [pool])])
    dataset: Any = SimpleNamespace(context=SimpleNamespace())
    watch(dataset, pools(3), lambda: pools(size[0]), Patience(lost_s=10, joined_s=20))
    (watching,) = dataset.context.custom_execution_callback_classes
    look = watching()

    def at(second: float, count: int) -> None:
        now[0], size[0] = second, count
        look.on_execution_step(executor)

    at(100, 3)
    at(105, 1)
    at(110, 3)  # it came back
    at(115, 1)
    at(124, 1)
    assert killed == []
    with pytest.raises(PoolsMisfit, match="nodes lost: the cluster has 2 CPUs now"):
        at(126, 1)
    assert killed == [True]
    at(130, 6)
    with pytest.raises(PoolsMisfit, match="nodes joined: the cluster has 12 CPUs now"):
        at(151, 6)
