"""The files a cluster is set up with: the cloud cluster, the image, the dashboard."""

import json
import re
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]


def test_the_cloud_cluster_is_what_ray_up_takes_and_holds_no_key() -> None:
    import ray.autoscaler

    text = (ROOT / "cluster" / "ray-up.yaml").read_text()
    found = yaml.safe_load(text)
    jsonschema.validate(found, json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text()))
    types = found["available_node_types"]
    assert set(types) == {"head", "decode", "extract"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert all("InstanceMarketOptions" in types[pool]["node_config"] for pool in ("decode", "extract"))
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert not re.search(r"AKIA|aws_secret|private_key", text, re.IGNORECASE)


def test_the_image_runs_as_a_numeric_user_and_ships_every_room() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    for room in ("workflows", "tasks", "cluster", "pthnet", "storage"):
        assert f"COPY {room} {room}" in lines


def test_the_dashboard_asks_for_the_metrics_the_extraction_reports() -> None:
    found = json.loads((ROOT / "cluster" / "grafana.json").read_text())
    asked = " ".join(target["expr"] for panel in found["panels"] for target in panel["targets"])
    assert set(re.findall(r"ray_(pthnet_\w+)", asked)) == {
        "pthnet_windows_total",
        "pthnet_clips_total",
        "pthnet_stage_seconds_total",
        "pthnet_batch_fill",
    }
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]]
    assert len(places) == len(set(places))
    assert all(asked.count(bracket) == asked.count(other) for bracket, other in ("()", "{}", "[]"))
