"""Fixtures shared by all rooms: S3 servers on loopback."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import servers
from tests.devices import DEVICES

# pyarrow's S3 reads this once, when its first client is made.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.S3Server]:
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def rgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    with servers.rgw(tmp_path_factory.mktemp("rgw")) as server:
        yield server


def _use(server: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> servers.S3Server:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def moto(moto_server: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> servers.S3Server:
    """moto's S3, and the environment that leads to it."""
    return _use(moto_server, monkeypatch)


@pytest.fixture(params=["moto", "rgw"] if servers.has_rgw() else ["moto"])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> servers.S3Server:
    """An S3 server (moto everywhere, Ceph where installed), and the environment that leads to it."""
    return _use(request.getfixturevalue(f"{request.param}_server"), monkeypatch)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every device of this machine, with float32 that is float32."""
    from pthnet.matmul import exact_float32

    with exact_float32(request.param):
        yield request.param


# Files of half a minute and more, longest first: one of them begun last would keep one process busy and the other idle.
SLOW = ("train", "extract_killed", "extract", "finetune", "faults", "extract_s3", "demo", "refresh", "registry_servers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the others as they come."""
    places = {f"test_{name}.py": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """MLflow writes the server it last spoke to into the environment: the next test must not take it for the user's."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
