"""kustom: a custom Keras 3 part as dependable and as fast as a built-in one.

A part is its settings and one pure function; everything else is derived from them. This file is the table of contents:
the public names and nothing else. They are imported when first used, so that `import kustom` starts no backend; it only
chooses one where nobody has.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kustom.backends import choose as _choose_backend

_choose_backend()

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from kustom import errors as errors
    from kustom import textbook as textbook
    from kustom import typing as typing
    from kustom.checking.plot import plot as plot
    from kustom.checking.pytest_plugin import parametrize_with_checks as parametrize_with_checks
    from kustom.checking.runner import check as check
    from kustom.defining.decorators import activation as activation
    from kustom.defining.decorators import constraint as constraint
    from kustom.defining.decorators import initializer as initializer
    from kustom.defining.decorators import layer as layer
    from kustom.defining.decorators import loss as loss
    from kustom.defining.decorators import metric as metric
    from kustom.defining.decorators import regularizer as regularizer
    from kustom.defining.part import part as part
    from kustom.defining.settings import field as field
    from kustom.defining.sums import Ratio as Ratio
    from kustom.defining.sums import Sums as Sums
    from kustom.gradients.custom import custom_gradient as custom_gradient
    from kustom.gradients.numerical import check_gradient as check_gradient
    from kustom.gradients.numerical import numerical_gradient as numerical_gradient
    from kustom.gradients.tape import GradientTape as GradientTape
    from kustom.gradients.transforms import grad as grad
    from kustom.gradients.transforms import hessian as hessian
    from kustom.gradients.transforms import hvp as hvp
    from kustom.gradients.transforms import jacobian as jacobian
    from kustom.gradients.transforms import value_and_grad as value_and_grad
    from kustom.saving.inspecting import inspect as inspect
    from kustom.saving.loading import load as load
    from kustom.saving.writing import save as save
    from kustom.training.function import function as function
    from kustom.training.loop import Loop as Loop
    from kustom.training.model import Model as Model
    from kustom.training.supervised import Supervised as Supervised

_HOMES = {
    "loss": "kustom.defining.decorators",
    "metric": "kustom.defining.decorators",
    "activation": "kustom.defining.decorators",
    "initializer": "kustom.defining.decorators",
    "regularizer": "kustom.defining.decorators",
    "constraint": "kustom.defining.decorators",
    "layer": "kustom.defining.decorators",
    "part": "kustom.defining.part",
    "field": "kustom.defining.settings",
    "Ratio": "kustom.defining.sums",
    "Sums": "kustom.defining.sums",
    "GradientTape": "kustom.gradients.tape",
    "grad": "kustom.gradients.transforms",
    "value_and_grad": "kustom.gradients.transforms",
    "jacobian": "kustom.gradients.transforms",
    "hessian": "kustom.gradients.transforms",
    "hvp": "kustom.gradients.transforms",
    "custom_gradient": "kustom.gradients.custom",
    "numerical_gradient": "kustom.gradients.numerical",
    "check_gradient": "kustom.gradients.numerical",
    "inspect": "kustom.saving.inspecting",
    "function": "kustom.training.function",
    "Loop": "kustom.training.loop",
    "Supervised": "kustom.training.supervised",
    "Model": "kustom.training.model",
    "save": "kustom.saving.writing",
    "load": "kustom.saving.loading",
    "check": "kustom.checking.runner",
    "parametrize_with_checks": "kustom.checking.pytest_plugin",
    "plot": "kustom.checking.plot",
}
_MODULES = ("errors", "textbook", "typing")

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"kustom.{name}")
    else:
        raise AttributeError(f"module 'kustom' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
