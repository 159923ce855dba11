"""Create a RayJob and wait for its end, inside Kubernetes: `python -m cluster.await_ray_job rayjob.json`.

What the CronJob's pod runs. Speaks to the API server with the pod's own account; needs no client library. The RayJob
takes the name in RAY_JOB_NAME, so that a replaced pod finds the run that its predecessor began. Exit codes: 0 done,
1 failed, 2 Kubernetes refused.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_S = 10.0
PATIENCE_S = 600.0  # how long the API server may be away, as during a control-plane upgrade


class Refused(RuntimeError):
    """The API server's answer to a request it would not serve."""


def run(manifest: dict[str, Any], *, name: str, url: str, account: Path = ACCOUNT, poll_s: float = POLL_S) -> int:
    """Create the RayJob, or find the one of that name, and wait for its end.

    Parameters
    ----------
    manifest
        A RayJob without a name.
    name
        The name it takes.
    url
        The API server, "https://host:port".
    account
        Folder with `token`, `namespace` and `ca.crt`; the token is read again for each request, since Kubernetes
        renews it.

    Returns
    -------
    int
        0 when the job succeeded, 1 when it failed.
    """
    namespace = (account / "namespace").read_text().strip()
    collection = f"{url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    body = {**manifest, "metadata": {**manifest.get("metadata", {}), "name": name, "namespace": namespace}}
    status, answer = _request("POST", collection, account, body)
    if status == 409:
        print(f"RayJob {name} is there already; waiting for it", flush=True)
    elif status >= 300:
        raise Refused(f"RayJob {name} was not created: {status} {answer.get('message', '')}")
    else:
        print(f"RayJob {name} created", flush=True)
    said = None
    silent_since: float | None = None
    while True:
        status, answer = _request("GET", f"{collection}/{name}", account)
        if status == 404:
            raise Refused(f"RayJob {name} was deleted before its end")
        if status >= 300:
            silent_since = silent_since or time.monotonic()
            if status in (401, 403) or time.monotonic() - silent_since > PATIENCE_S:
                raise Refused(f"RayJob {name} cannot be read: {status} {answer.get('message', '')}")
        else:
            silent_since = None
            now = answer.get("status") or {}
            state = (now.get("jobDeploymentStatus") or "Waiting", now.get("jobStatus") or "")
            if state != said:
                said = state
                print(f"RayJob {name}: {' '.join(filter(None, state))} {now.get('message') or ''}".rstrip(), flush=True)
            if state[0] in ("Complete", "Failed", "ValidationFailed"):
                return 0 if state == ("Complete", "SUCCEEDED") else 1
        time.sleep(poll_s)


def _request(method: str, url: str, account: Path, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON body; an API server that cannot be reached is status 599."""
    request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {(account / 'token').read_text().strip()}")
    request.add_header("Content-Type", "application/json")
    context = ssl.create_default_context(cafile=str(account / "ca.crt")) if url.startswith("https") else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:
            return error.code, {"message": error.reason}
    except OSError as error:
        return 599, {"message": str(error)}


def main() -> int:
    """Read the manifest named on the command line and run it."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    try:
        return run(
            json.loads(Path(sys.argv[1]).read_text()), name=os.environ["RAY_JOB_NAME"], url=f"https://{host}:{port}"
        )
    except Refused as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
