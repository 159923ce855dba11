"""Kubernetes' structural schemas: what the API server would refuse, and what it would silently drop."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, validators

_OBJECT = {"apiVersion", "kind", "metadata"}  # of every object; their schema is the API server's own


def schema(kind: str) -> dict[str, Any]:
    """The schema of a KubeRay kind."""
    return dict(json.loads(gzip.decompress((Path(__file__).parent / "crds" / f"{kind}.json.gz").read_bytes())))


def problems(value: dict[str, Any], kind: str) -> list[str]:
    """Everything wrong with an object: values the schema refuses and fields it does not know."""
    found = schema(kind)
    checker = validators.extend(Draft7Validator, {"type": _type})(found)
    refused = [f"{error.json_path}: {error.message}" for error in checker.iter_errors(value)]
    return refused + list(unknown(value, found))


def unknown(value: Any, schema: dict[str, Any], path: str = "$") -> Iterator[str]:
    """Fields that the schema does not name, which the API server would drop without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            if path == "$" and key in _OBJECT:
                continue
            if key in named:
                yield from unknown(item, named[key], f"{path}.{key}")
            elif isinstance(others, dict):
                yield from unknown(item, others, f"{path}.{key}")
            elif others is not True:
                yield f"{path}.{key}: the schema does not know this field"
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from unknown(item, schema.get("items", {}), f"{path}[{position}]")


def _type(validator: Any, wanted: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not schema.get("x-kubernetes-int-or-string"):
        yield from Draft7Validator.VALIDATORS["type"](validator, wanted, value, schema)
