"""The model card: what a registered model is, where it comes from and what it may be used for, as Markdown."""

from typing import Any

from tasks.bundle import Bundle

CARD = "README.md"
_USE = """## Use

Classifies the facial expression shown in a short video clip. An expression is not a feeling: the model says what a
face shows in the eyes of the people who labelled its training data, and nothing about what anyone feels, thinks or
intends. Scores hold for faces, cameras and cultures like those of that data. It is not made for decisions about people.

    pthnet predict VIDEOS --model models:/NAME/VERSION --out predictions/
    mlflow models serve -m models:/NAME/VERSION --env-manager local
"""


def model_card(bundle: Bundle, tags: dict[str, str]) -> str:
    """The card of a model with the tags of its version.

    Parameters
    ----------
    bundle
        The model; its facts are shown where they are known.
    tags
        Scores, data and licence.
    """
    facts = bundle.facts
    spec = bundle.extractor
    networks = {name: net.config for name, net in bundle.networks.items()}
    sizes = next(iter(networks.values()))
    rows: list[tuple[str, Any]] = [
        ("networks", " and ".join(networks) + f", PTH-Net of {sizes.dim} channels, {bundle.level} level"),
        ("fusion", f"{bundle.mu:g} * forward + {1 - bundle.mu:g} * reverse" if len(networks) > 1 else "none"),
        ("classes", ", ".join(bundle.classes)),
        ("benchmark", facts.get("benchmark")),
        ("fold", facts.get("fold")),
        ("extractor", bundle.extractor_id or "not recorded"),
        ("backbone's weights", _weights(spec)),
        ("trained on", _data(facts.get("data"))),
        ("epoch chosen by", facts.get("selection")),
        ("UAR, WAR", _scores(tags)),
        ("evaluation data", tags.get("evaluation_data")),
        ("source", facts.get("source", "trained here" if "run" in facts else None)),
        ("licence", tags.get("licence", "that of the training data and of the backbone's weights; see their terms")),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value not in (None, ""))
    return f"# {facts.get('benchmark') or 'A model'}: expressions in video\n\n| | |\n|---|---|\n{table}\n\n{_USE}"


def _weights(spec: dict[str, Any]) -> str | None:
    if not spec:
        return None
    drawn = f", random, seed {spec['seed']}: made for trying out" if spec.get("seed") is not None else ""
    return f"{spec['backbone']}, sha256 {spec['weights'][:16]}{drawn}"


def _data(data: dict[str, Any] | None) -> str | None:
    if not data:
        return None
    lists = ", ".join(f"{name} {digest[:12]}" for name, digest in data.get("lists", {}).items())
    return f"{data.get('clips')} clips of table version {data.get('table_version')}; lists {lists}"


def _scores(tags: dict[str, str]) -> str | None:
    if "uar" not in tags or "war" not in tags:
        return "not scored"
    return f"{100 * float(tags['uar']):.2f} %, {100 * float(tags['war']):.2f} %"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
