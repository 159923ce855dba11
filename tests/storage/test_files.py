"""What S3 fails to answer is asked again, by every client; what it cut short is read again."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from storage import delta, files
from tests import servers

CALLS: dict[str, Callable[[str], Any]] = {
    "boto3": lambda uri: files.head(uri),
    "boto3 write": lambda uri: files.write_atomic(f"{uri}.new", b"bytes"),
    "boto3 list": lambda uri: list(files.walk(uri)),
    "pyarrow": lambda uri: files.size_of(uri),
    "delta": lambda uri: delta.open_table(uri),
}


@pytest.fixture
def proxy(moto: servers.S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    with servers.FaultyProxy(moto.endpoint, rate=1.0, limit=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("client", CALLS)
@pytest.mark.parametrize("fault", ["unavailable", "drop"])
def test_an_answer_that_fails_twice_is_asked_for_a_third_time(
    moto: servers.S3Server, proxy: servers.FaultyProxy, client: str, fault: str
) -> None:
    bucket = moto.bucket()
    moto.put(bucket, "a", b"bytes")
    proxy.faults = (fault,)
    CALLS[client](f"s3://{bucket}/a")
    assert proxy.injected == 2


def test_an_object_whose_body_is_cut_short_is_read_again(moto: servers.S3Server, proxy: servers.FaultyProxy) -> None:
    bucket, data = moto.bucket(), bytes(range(256)) * 100
    moto.put(bucket, "a", data)
    proxy.faults = ("cut",)
    assert files.read_bytes(f"s3://{bucket}/a") == data
    assert proxy.injected == 2


def test_a_table_whose_log_is_cut_short_is_opened_again(
    moto: servers.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{moto.bucket()}/t"
    delta.ensure_table(uri, pa.schema([("a", pa.int32())]))
    with servers.FaultyProxy(moto.endpoint, rate=1.0, faults=("cut",), limit=4) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        table = delta.open_table(uri)
        assert table is not None
        assert table.version() == 0
        assert proxy.injected == 4
