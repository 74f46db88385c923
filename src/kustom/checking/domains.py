"""What numbers a part takes: domains by name, those of a loss or metric in pairs, and the shapes of a layer's samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kustom.errors import UsageError

__all__ = ["AT_ENDS", "DOMAINS", "ENDS", "INTEGERS", "PAIRS", "SAMPLES", "Domain", "Shape", "draw"]

Shape = tuple[int, ...]


def _probabilities(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    if not shape or shape[-1] == 1:
        return rng.uniform(0.05, 0.95, shape)
    x = np.exp(rng.normal(size=shape))
    return x / x.sum(axis=-1, keepdims=True)


DOMAINS: dict[str, Callable[[np.random.Generator, Shape], np.ndarray]] = {
    "reals": lambda rng, shape: rng.normal(size=shape),
    "positive": lambda rng, shape: np.exp(rng.normal(size=shape)),
    "unit": lambda rng, shape: rng.uniform(0.02, 0.98, shape),
    "probabilities": _probabilities,
    "one_hot": lambda rng, shape: np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])],
    "binary": lambda rng, shape: rng.integers(0, 2, shape).astype(float),
    "signs": lambda rng, shape: rng.choice([-1.0, 1.0], shape),
    "ids": lambda rng, shape: rng.integers(0, 2, shape),
}
INTEGERS = ("ids",)
# The least and the largest number of a domain that has them: a softmax that is sure gives exactly 0 and 1.
ENDS = {"unit": (0.0, 1.0), "probabilities": (0.0, 1.0)}
# Domains of targets that are at those ends, or may be.
AT_ENDS = (*ENDS, "one_hot", "binary", *INTEGERS)

Domain = Any  # a name in DOMAINS, or a pair of bounds


def draw(domain: Domain, rng: np.random.Generator, shape: Shape, dtype: str = "float32") -> np.ndarray:
    """Numbers of a domain.

    Raises:
        UsageError: There is no such domain.
    """
    if isinstance(domain, tuple | list) and len(domain) == 2 and all(isinstance(bound, int | float) for bound in domain):
        return rng.uniform(domain[0], domain[1], shape).astype(dtype)
    if domain not in DOMAINS:
        raise UsageError(f"there is no domain {domain!r}; they are {', '.join(DOMAINS)}, or a pair of bounds.")
    return DOMAINS[domain](rng, shape).astype("int32" if domain in INTEGERS else dtype)


# For a loss or metric: the domains of y_true and y_pred, and whether y_true has one entry a sample.
PAIRS: tuple[tuple[str, str, bool], ...] = (
    ("reals", "reals", False),
    ("probabilities", "probabilities", False),
    ("unit", "unit", False),
    ("positive", "positive", False),
    ("binary", "unit", False),
    ("one_hot", "probabilities", False),
    ("ids", "probabilities", True),
    ("ids", "reals", True),
)

# For a layer or model: the shape of one sample, and whether it is of integers.
SAMPLES: tuple[tuple[Shape, str], ...] = (
    ((4,), "reals"),
    ((5, 4), "reals"),
    ((8, 8, 3), "reals"),
    ((5,), "ids"),
    ((), "ids"),
    ((4, 4, 4, 2), "reals"),
    ((3, 8, 8, 3), "reals"),
    ((3, 3, 8, 8, 2), "reals"),
)
