"""An address where no cluster is, is told apart at once."""

from collections.abc import Callable

import pytest

from cluster.connect import connect
from cluster.errors import ClusterError


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_refused_in_one_line(
    form: str, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    address = form.format(free_port())
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="no Ray cluster answers at") as refused:
        connect(address)
    assert address in str(refused.value)
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="unset RAY_ADDRESS"):
        connect()
