"""Whom a load trusts: modules that may be imported, and classes that were given by hand.

What a registered object is good for is read from its bases' names, so that nobody has to ask Keras.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from kustom.errors import UntrustedError
from kustom.saving import table

__all__ = ["Trust", "bases", "fits", "is_part", "name_of_script", "script_of"]

# A base class of Keras's, and the slot of what derives from it.
_BASES = {
    "Model": "model",
    "Layer": "layer",
    "Loss": "loss",
    "Metric": "metric",
    "BaseOptimizer": "optimizer",
    "Initializer": "initializer",
    "Regularizer": "regularizer",
    "Constraint": "constraint",
    "LearningRateSchedule": "schedule",
    "Quantizer": "quantizer",
    "QuantizationConfig": "quantization",
    "DTypePolicy": "dtype",
    "Operation": "operation",
    "DistillationLoss": "distillation",
    "SeedGenerator": "seed",
}
# What takes anything that can be called.
_CALLABLE = {"activation", "initializer", "regularizer", "constraint", "loss", "metric", "schedule", "function"}

# As what a script runs, and as what a process imports it that it has started.
_RUNNING = ("__main__", "__mp_main__")


class Trust:
    """What `trust=` says.

    Args:
        given: A module's name, several, or registered names with their classes and functions.

    Raises:
        UntrustedError: It is none of these.
    """

    def __init__(self, given: str | Iterable[str] | Mapping[str, Any]) -> None:
        self.objects: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
        if not isinstance(given, str | Iterable):
            raise UntrustedError(
                f"trust= takes the name of a module, several, or registered names with their classes, not {given!r}; leave it "
                "out to trust nobody."
            )
        modules = () if isinstance(given, Mapping) else (given,) if isinstance(given, str) else tuple(given)
        for name in (*modules, *self.objects):
            if not isinstance(name, str) or not name:
                raise UntrustedError(f"trust= takes names of modules, or registered names with their classes, not {name!r}.")
        for name in modules:
            if not all(part.isidentifier() for part in name.split(".")):
                raise UntrustedError(f'trust={name!r} is no module\'s name, such as "my_package" or "my_package.parts".')
        self.modules = modules

    def script(self, told: Iterable[Any]) -> str | None:
        """The module in which the script runs whose parts these are, where it is trusted under that name, by `__name__`.

        Args:
            told: What a file says of where a part is from: nothing, of what Keras took for a script's.
        """
        for running in _RUNNING:
            if running in self.modules and {*_RUNNING, name_of_script(running)}.issuperset(told):
                return running
        return None

    def covers(self, module: str) -> bool:
        """Whether a module may be imported: it, or a package around it, is named."""
        return any(module == name or module.startswith(f"{name}.") for name in self.modules)


def name_of_script(module: str) -> str | None:
    """The name by which other programs import the script that runs as `module`, and it saves; None where it is no script."""
    main = sys.modules.get(module) if module in _RUNNING else None
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return spec.name.removesuffix(".__main__")
    return None if file is None else os.path.splitext(os.path.basename(file))[0]


def script_of(module: str) -> str | None:
    """The package, or module, as which other programs import the script that runs as `module`; None where it is no script."""
    name = name_of_script(module)
    return None if name is None else name.split(".")[0]


def bases(obj: Any) -> list[dict[str, Any]]:
    """What the table says of the classes of Keras that a registered class derives from, nearest first.

    What a class of Keras's that is taken itself derives from says nothing of who derives from it: a functional model is a
    graph of objects, too.
    """
    found, taken = [], set()
    for base in getattr(obj, "__mro__", ()):
        entry = table.defined(base.__module__, base.__name__)
        if entry is None or ("refused" in entry and base in taken):
            continue
        found.append(entry)
        if "refused" not in entry:
            taken.update(base.__mro__)
    return found


def fits(obj: Any, slot: str) -> bool:
    """Whether a registered class or function can stand in a slot."""
    if slot == "any":
        return True
    if not isinstance(obj, type):
        return callable(obj) and slot in _CALLABLE
    kinds = _kinds(obj)
    if "layer" in kinds:
        kinds |= {"operation", "activation"}
    if "loss" in kinds:
        kinds.add("metric")
    if "model" in kinds:
        kinds.add("layer")
    # What derives from nothing of Keras's is taken where Keras asks for no more than that its instances can be called.
    return slot in kinds if kinds else slot in _CALLABLE and any("__call__" in vars(base) for base in obj.__mro__)


def is_part(obj: Any) -> bool:
    """Whether what is registered nowhere is a part by what it is: a class that derives from one of Keras's."""
    return isinstance(obj, type) and bool(_kinds(obj))


def _kinds(cls: type) -> set[str]:
    return {_BASES[base.__name__] for base in cls.__mro__ if base.__module__.split(".")[0] == "keras" and base.__name__ in _BASES}
