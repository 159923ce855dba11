"""How trainings share a cluster."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cluster.errors import ClusterError
from pthnet.pth_net import PTHNetConfig
from tasks.checkpoints import TrainState
from tasks.feature_set import Split
from tasks.train_settings import TrainSettings
from workflows.fits import Fit, FitPlan, _Display, plan_fits


@pytest.mark.parametrize(
    ("count", "nodes", "workers", "expected"),
    [
        (2, [{"CPU": 1}], None, FitPlan(workers=1, cpus=1, gpus=0, at_once=1)),
        (2, [{"CPU": 2}], None, FitPlan(workers=2, cpus=0.5, gpus=0, at_once=2)),  # side by side on two cores
        (2, [{"CPU": 16}], None, FitPlan(workers=2, cpus=4, gpus=0, at_once=2)),
        (10, [{"CPU": 16}], None, FitPlan(workers=2, cpus=1, gpus=0, at_once=8)),
        (8, [{"CPU": 64, "GPU": 8}], None, FitPlan(workers=1, cpus=8, gpus=1, at_once=8)),
        (10, [{"CPU": 64, "GPU": 8}], None, FitPlan(workers=1, cpus=6, gpus=0.5, at_once=10)),
        (2, [{"CPU": 16, "GPU": 1}], None, FitPlan(workers=1, cpus=8, gpus=0.5, at_once=2)),  # launch-bound: share it
        (3, [{"CPU": 16, "GPU": 1}], 1, FitPlan(workers=1, cpus=5, gpus=0.33, at_once=3)),
        (2, [{"CPU": 1, "GPU": 1}], None, FitPlan(workers=1, cpus=1, gpus=1, at_once=1)),  # one core to launch from
        (2, [{"CPU": 64, "GPU": 8}], 4, FitPlan(workers=4, cpus=8, gpus=1, at_once=2)),
        (4, [{"CPU": 64, "GPU": 2}], 2, FitPlan(workers=2, cpus=8, gpus=1, at_once=1)),  # no two ranks on one GPU
        (52, [{"CPU": 4, "GPU": 1}], None, FitPlan(workers=1, cpus=1, gpus=0.25, at_once=4)),
        (1, [{}, *[{"CPU": 2}] * 4], None, FitPlan(workers=2, cpus=2, gpus=0, at_once=1)),  # none has the 4 to spare
        (1, [{"CPU": 3}, {"CPU": 3}], 3, FitPlan(workers=3, cpus=1, gpus=0, at_once=1)),  # two a node at most
        (2, [{"CPU": 16, "GPU": 4}] * 2 + [{"CPU": 64}], 4, FitPlan(workers=4, cpus=4, gpus=1, at_once=2)),
    ],
)
def test_trainings_share_the_cluster(
    count: int, nodes: list[dict[str, float]], workers: int | None, expected: FitPlan
) -> None:
    assert plan_fits(count, nodes, workers) == expected


NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 40), "GPU": st.integers(0, 8)}), min_size=1, max_size=6)


@given(st.integers(1, 80), NODES, st.none() | st.integers(1, 6))
def test_all_workers_of_a_plan_can_be_placed_at_once(
    count: int, nodes: list[dict[str, float]], workers: int | None
) -> None:
    try:
        plan = plan_fits(count, nodes, workers)
    except ClusterError:
        devices = sum(node["GPU"] for node in nodes if node["CPU"]) or sum(node["CPU"] for node in nodes)
        assert devices < (workers or 1)
        return
    assert plan.cpus > 0
    assert 1 <= plan.at_once <= count
    rooms = [int(node["CPU"] / plan.cpus + 1e-9) for node in nodes]
    a_gpu = int(1 / plan.gpus) if plan.gpus else 0
    held = [min(room, node["GPU"] * a_gpu) if plan.gpus else room for room, node in zip(rooms, nodes, strict=True)]
    assert sum(held) >= plan.workers * plan.at_once
    assert plan.gpus in (0, 1) or (plan.workers == 1 and 0.25 <= plan.gpus <= 0.5)


def test_more_workers_than_devices_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"4 workers need as many GPUs; the cluster has 1\. Lower --workers"):
        plan_fits(2, [{"CPU": 8, "GPU": 1}], 4)
    with pytest.raises(ClusterError, match="neither a CPU nor a GPU"):
        plan_fits(2, [{}])


def _fits() -> list[Fit]:
    none = np.arange(0)
    settings = TrainSettings(model=PTHNetConfig(in_dim=16, dim=16, mlp_dim=16), epochs=8)
    split = Split(fold="1", train=none, validation=none, test=none)
    return [Fit(name=f"fold-1-{way}", features=None, split=split, settings=settings) for way in ("forward", "reverse")]


def test_one_display_shows_all_trainings_from_what_their_workers_wrote(tmp_path: Path) -> None:
    record = {"epoch": 3, "epochs": 8, "loss": 0.5, "test_uar": 0.4321, "clips_per_s": 1234.0}
    (tmp_path / "fold-1-forward").mkdir()
    (tmp_path / "fold-1-forward" / "progress.json").write_text(json.dumps(record))
    screen = io.StringIO()
    with _Display(_fits(), str(tmp_path), Console(file=screen, force_terminal=True, width=120)) as display:
        display.refresh()
        display.finish("fold-1-reverse", TrainState(epoch=8, history=[{**record, "epoch": 8}]))
    shown = screen.getvalue()
    assert "3/8" in shown
    assert "8/8" in shown
    assert "loss 0.5000  test UAR 43.21  1,234 clips/s" in shown


def test_without_a_terminal_a_training_is_one_line(tmp_path: Path) -> None:
    screen = io.StringIO()
    with _Display(_fits(), str(tmp_path), Console(file=screen, width=60)) as display:
        display.finish("fold-1-forward", TrainState(epoch=8, history=[{"epoch": 8, "loss": 0.25, "clips_per_s": 10.0}]))
    assert screen.getvalue().strip() == "trained fold-1-forward: 8 epochs, loss 0.2500  10 clips/s"
