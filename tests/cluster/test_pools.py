"""The split of a cluster between decoding and the forward pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.pools import Pools, pool_options, pool_sizes


def test_a_gpu_node_runs_one_actor_per_gpu_and_decodes_on_the_other_cores() -> None:
    pools = pool_sizes({"CPU": 32.0, "GPU": 4.0})
    assert pools == Pools(
        gpu_actors=4, max_actors=4, actor_cpus=1.0, actor_gpus=1.0, decode_tasks=28, decode_cpus=1.0, device="cuda"
    )


def test_two_cores_give_one_to_the_forward_pass_and_one_to_decoding() -> None:
    pools = pool_sizes({"CPU": 2.0})
    assert (pools.gpu_actors, pools.actor_cpus, pools.decode_tasks, pools.device) == (1, 1.0, 1, "cpu")


def test_one_core_is_halved_so_that_neither_pool_starves() -> None:
    pools = pool_sizes({"CPU": 1.0})
    assert pools.gpu_actors * pools.actor_cpus + pools.decode_tasks * pools.decode_cpus <= 1.0


def test_cpu_actors_fit_the_smallest_node_beside_its_share_of_decoding() -> None:
    pools = pool_sizes({"CPU": 16.0}, node_cpus=4)
    assert (pools.actor_cpus, pools.gpu_actors, pools.decode_tasks) == (3.0, 4, 4)


def test_the_nodes_ray_lists_are_counted_the_head_once() -> None:
    three = {
        "CPU": 6.0,
        "node:10.0.0.1": 1.0,
        "node:__internal_head__": 1.0,
        "node:10.0.0.2": 1.0,
        "node:10.0.0.3": 1.0,
    }
    pools = pool_sizes(three)
    assert (pools.actor_cpus, pools.gpu_actors, pools.decode_tasks) == (1.0, 3, 3)


def test_a_big_machine_runs_several_actors_rather_than_one_with_idle_threads() -> None:
    pools = pool_sizes({"CPU": 32.0, "node:10.0.0.1": 1.0})
    assert (pools.actor_cpus, pools.gpu_actors, pools.decode_tasks) == (8.0, 3, 8)


def test_ceilings_hold_on_a_shared_cluster() -> None:
    pools = pool_sizes({"CPU": 256.0, "GPU": 16.0}, max_cpus=20, max_gpus=4)
    assert pools.gpu_actors == 4
    assert pools.gpu_actors * pools.actor_cpus + pools.decode_tasks * pools.decode_cpus <= 20


def test_no_gpus_allowed_means_the_cpu() -> None:
    assert pool_sizes({"CPU": 8.0, "GPU": 1.0}, max_gpus=0).device == "cpu"


def test_half_a_gpu_each_puts_two_actors_on_a_gpu() -> None:
    pools = pool_sizes({"CPU": 8.0, "GPU": 1.0}, gpu_fraction=0.5)
    assert (pools.gpu_actors, pools.actor_gpus) == (2, 0.5)


def test_a_cluster_that_grows_is_asked_for_gpus_it_does_not_have_yet() -> None:
    pools = pool_sizes({"CPU": 4.0}, max_cpus=64, max_gpus=8, elastic=True)
    assert pools.device == "cuda"
    assert (pools.gpu_actors, pools.max_actors) == (1, 8)
    assert pools.decode_tasks > 4


def test_asking_for_cuda_without_gpus_names_the_remedy() -> None:
    with pytest.raises(ClusterError, match="device cpu"):
        pool_sizes({"CPU": 4.0}, device="cuda")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_cpus": 0},
        {"max_gpus": -1},
        {"gpu_fraction": 0},
        {"gpu_fraction": 1.5},
        {"decode_cpus": 0},
        {"actor_cpus": 0},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ClusterError):
        pool_sizes({"CPU": 4.0, "GPU": 1.0}, **wrong)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    cpus=st.integers(1, 4096),
    gpus=st.integers(0, 1024),
    max_cpus=st.none() | st.integers(1, 4096),
    max_gpus=st.none() | st.integers(0, 1024),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    together=st.booleans(),
)
def test_both_pools_always_fit_side_by_side(
    cpus: int, gpus: int, max_cpus: int | None, max_gpus: int | None, fraction: float, together: bool
) -> None:
    pools = pool_sizes({"CPU": cpus, "GPU": gpus}, max_cpus, max_gpus, gpu_fraction=fraction, together=together)
    allowed_cpus = min(cpus, max_cpus or cpus)
    allowed_gpus = gpus if max_gpus is None else min(gpus, max_gpus)
    assert pools.gpu_actors >= 1
    assert pools.decode_tasks >= 1
    assert pools.max_actors == pools.gpu_actors
    assert pools.gpu_actors * pools.actor_cpus + pools.decode_tasks * pools.decode_cpus <= allowed_cpus + 1e-6
    assert pools.gpu_actors * pools.actor_gpus <= allowed_gpus


@settings(deadline=None)
@given(node=st.integers(2, 256), count=st.integers(1, 64))
def test_an_actor_that_reserves_its_decoding_fits_a_node_and_uses_all_of_it(node: int, count: int) -> None:
    pools = pool_sizes({"CPU": float(node * count)}, node_cpus=node, together=True)
    on_a_node = int(node / pools.actor_cpus + 1e-9)
    assert pools.decode_cpus == 0
    assert pools.gpu_actors <= on_a_node * count
    assert pools.gpu_actors * pools.actor_cpus > node * count - 1  # nothing that another run's actor could take


def test_pools_can_be_kept_on_labelled_nodes_or_custom_resources() -> None:
    assert pool_options("pool=decode,market=spot") == {"label_selector": {"pool": "decode", "market": "spot"}}
    assert pool_options("decode_slot:0.5") == {"resources": {"decode_slot": 0.5}}
    assert pool_options("decode_slot") == {"resources": {"decode_slot": 1.0}}
    assert pool_options(None) == {}


@pytest.mark.parametrize("wrong", ["pool=", "=decode", "slot:0", "slot:x", "GPU:1"])
def test_a_wrong_pool_choice_is_explained(wrong: str) -> None:
    with pytest.raises(ClusterError):
        pool_options(wrong)
