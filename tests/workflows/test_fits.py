"""How trainings share a cluster."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cluster.errors import ClusterError
from pthnet.pth_net import PTHNetConfig
from tasks.checkpoints import TrainState
from tasks.feature_set import Split
from tasks.train_settings import TrainSettings
from workflows.fits import Fit, FitPlan, _Display, plan_fits


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
