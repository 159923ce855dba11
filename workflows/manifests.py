"""Print Kubernetes manifests for KubeRay.

pthnet manifests base --image registry.example/pthnet:0.1.0 | kubectl apply -f -
pthnet manifests cronjob --image registry.example/pthnet:0.1.0 --cron "0 3 * * *" -- extract s3://videos --features s3://features
"""

from pathlib import Path
from typing import Any

from cluster.kubernetes import CHAMPION, NIGHTLY, Kind


def manifests(
    kind: Kind,
    *command: str,
    image: str,
    name: str = "pthnet",
    namespace: str = "pthnet",
    secret: str = "pthnet-credentials",
    settings: str = "pthnet-settings",
    cron: str = NIGHTLY,
    timezone: str = "Etc/UTC",
    model: str = CHAMPION,
    decode_nodes: tuple[int, int] = (0, 8),
    decode_cpus: int = 8,
    decode_memory: str = "32Gi",
    extract_nodes: tuple[int, int] = (0, 4),
    extract_cpus: int = 4,
    extract_memory: str = "32Gi",
    extract_gpus: int = 1,
    spot: str | None = None,
    operator_namespace: str = "kuberay-operator",
    output: Path | None = None,
) -> None:
    """Print the manifests of one kind, ready for `kubectl apply -f -`; no cluster is asked and no credential is
    written.

    Parameters
    ----------
    kind
        base (namespace, network policy), raycluster, rayjob, cronjob, raycronjob or rayservice.
    command
        The workflow to run and its arguments, after `--`.
    image
        The image of this project, with a tag or digest.
    name
        Of the objects.
    namespace
        That they live in.
    secret
        Kubernetes secret whose keys become environment variables.
    settings
        Kubernetes config map, likewise, for what is no secret; may be absent.
    cron
        When the recurring kinds run.
    timezone
        In which it is read.
    model
        What rayservice serves: models:/NAME@champion, the registry being MLFLOW_TRACKING_URI's.
    decode_nodes
        Least and most nodes of the CPU pool.
    extract_nodes
        Least and most nodes of the GPU pool.
    decode_cpus
        Cores of a decode node.
    decode_memory
        Its memory.
    extract_cpus
        Cores of an extract node.
    extract_memory
        Its memory.
    extract_gpus
        Its GPUs.
    spot
        KEY=VALUE of the label of spot nodes for both pools.
    operator_namespace
        Where KubeRay runs.
    output
        Write here instead of to standard output.
    """
    from cluster.cron import Cron
    from cluster.kubernetes import EXTRACT
    from cluster.kubernetes import manifests as objects
    from cluster.pods import Deployment

    Cron.parse(cron, timezone)
    on = Deployment(
        image=image,
        name=name,
        namespace=namespace,
        secret=secret,
        settings=settings,
        decode_min=decode_nodes[0],
        decode_max=decode_nodes[1],
        decode_cpus=decode_cpus,
        decode_memory=decode_memory,
        extract_min=extract_nodes[0],
        extract_max=extract_nodes[1],
        extract_cpus=extract_cpus,
        extract_memory=extract_memory,
        extract_gpus=extract_gpus,
        spot=spot,
        operator_namespace=operator_namespace,
    )
    text = render(objects(kind, on, command=command or EXTRACT, schedule=cron, timezone=timezone, model=model))
    if output is None:
        print(text, end="")
    else:
        output.write_text(text)


def render(objects: list[dict[str, Any]]) -> str:
    """The objects as one YAML stream; long texts as blocks, repeated parts written out."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, block)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, explicit_start=True, width=120)
