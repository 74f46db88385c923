"""The manifest, `kustom.json`: what a file says about itself, beside what Keras reads. `docs/file-format.md` describes it.

It is read and judged before anything of the file runs, and nothing in it makes anything run: a name in it is a name.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import platform
import sys
import textwrap
from typing import Any

import keras

import kustom
from kustom.defining import naming
from kustom.defining.versions import KEY
from kustom.saving.rebuilding import definition_of, nodes, written_of
from kustom.saving.schema import FORMAT
from kustom.saving.schema import check as check_format

__all__ = ["FORMAT", "check_format", "describe", "fingerprint", "is_of_layers", "text_of", "versions"]

# Under these names stand the weights of what is no layer.
_COMPILED = frozenset(["optimizer", "loss", "metrics", "_compile_loss", "_compile_metrics", "_loss_tracker"])
# Settings of a part that are longer stand in the config alone.
_SETTINGS = 1 << 14


def versions() -> dict[str, str]:
    """What writes a file."""
    backend = keras.backend.backend()
    return {
        "kustom": kustom.__version__,
        "keras": keras.__version__,
        "backend": backend,
        backend: _version(backend) or "unknown",
        "python": platform.python_version(),
    }


def describe(config: dict[str, Any], originals: dict[int, Any], is_custom: Any) -> list[dict[str, Any]]:
    """The custom parts of a config, each once, with its places and settings there.

    Args:
        config: The config of a model, each object in it with its `shared_object_id`.
        originals: The objects by that id.
        is_custom: Whether the config of an object is that of a custom part.
    """
    parts: dict[str, dict[str, Any]] = {}
    for place, node in nodes(config):
        original = originals.get(node.get("shared_object_id", -1))
        if original is None or not is_custom(node, original):
            continue
        definition = definition_of(original)
        name = node["registered_name"] or node["class_name"]
        if node["class_name"] == "function":
            name = node["config"]
        part = parts.setdefault(
            name,
            {
                "registered_name": name,
                "module": naming.package_of(definition.__module__),
                "name": definition.__qualname__,
                **_distribution(definition.__module__),
                "source": fingerprint(definition),
                "uses": [],
            },
        )
        settings = node["config"] if isinstance(node["config"], dict) else {}
        use: dict[str, Any] = {"place": place, "settings_version": settings.get(KEY, 1)}
        if len(json.dumps(settings)) <= _SETTINGS:
            use["settings"] = _without_ids(settings)
        part["uses"].append(use)
    return list(parts.values())


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "shared_object_id"}
    return [_without_ids(item) for item in value] if isinstance(value, list | tuple) else value


def fingerprint(definition: Any) -> str | None:
    """The SHA-256 of a part's source as it is written, without its indentation; None where there is none to read."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(written_of(definition))))
    except (OSError, TypeError):
        # Typed into a console, or made while running.
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def _distribution(module: str) -> dict[str, str | None]:
    top = naming.package_of(module).split(".")[0]
    version = _version(top)
    if version is not None:
        return {"distribution": top, "version": version}
    origin = getattr(sys.modules.get(module), "__file__", None) or ""
    if "site-packages" not in origin and "dist-packages" not in origin:
        return {"distribution": None, "version": None}
    name = next(iter(_distributions().get(top, [])), None)
    return {"distribution": name, "version": _version(name) if name else None}


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _distributions() -> Any:
    return importlib.metadata.packages_distributions()


def is_of_layers(path: str) -> bool:
    """Whether a path in the weights is that of a layer, and not of what a model was compiled with."""
    return not _COMPILED.intersection(path.split("/"))


def text_of(manifest: dict[str, Any]) -> bytes:
    """A manifest as it is written."""
    return json.dumps(manifest, allow_nan=False, ensure_ascii=False, indent=1).encode()
