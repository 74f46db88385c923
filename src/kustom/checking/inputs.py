"""What a part is called with: made from its kind and domain, as a caller of Keras would, or given by the user.

For a loss or metric the domain is found by trying: real numbers first, then what else such parts take. A candidate counts
where the part accepts it and its value is finite; of those, the one where most entries of `y_pred` matter, so that a loss
that clips is looked at where it does not. For a layer the ranks are tried that its kind of layers take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.checking import calls
from kustom.errors import SubjectError, UsageError

__all__ = ["DOMAINS", "ENDS", "INTEGERS", "Inputs", "draw"]

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
_AT_ENDS = (*ENDS, "one_hot", "binary", *INTEGERS)

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

_REALS, _SHARES = PAIRS[:2]

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


class Inputs:
    """The inputs of one subject.

    Attributes:
        given: What the user gave, as the tuple of arguments; None where nothing.
        domain: What the user said.
    """

    def __init__(self, subject: Any, given: Any, domain: Domain) -> None:
        self.subject = subject
        self.given = None if given is None else given if isinstance(given, tuple) else (given,)
        self.domain = domain
        self.failures: list[tuple[str, Exception]] = []
        self._found: Any = None

    @property
    def user_given(self) -> bool:
        """Whether the user said what the part is called with."""
        return self.given is not None

    def arguments(self, batch: int = 3, rng: np.random.Generator | None = None) -> tuple[Any, ...]:
        """The arguments of a call, for a batch of that size.

        Raises:
            SubjectError: None were found on which the part runs; `failures` says what happened.
        """
        rng = rng or self.subject.rng("inputs")
        assert rng is not None
        if self.given is not None:
            return tuple(_resized(_as_arrays(x), batch) for x in self.given)
        kind = self.subject.kind
        if kind in ("loss", "metric"):
            return self._pair(self.pair_domain(), batch, rng)
        if kind in ("layer", "model"):
            return self._sample(self.sample(), batch, rng)
        if kind == "initializer":
            return ((6, 4), "float32")
        return (draw(self.domain or "reals", rng, (batch, 4)),)

    def pair_domain(self) -> tuple[Domain, Domain, bool]:
        """The domains of targets and predictions, and whether there is one target a sample."""
        return self.subject.once("pair", self._find_pair)

    def has_ends(self) -> bool:
        """Whether targets and predictions of a loss may be the least and the largest of their domain, exactly 0 and 1.

        Where the domain was found by trying, numbers that add up to 1 may stand for any that are positive. They are
        probabilities to it if targets of 0 and 1 are taken, and predictions above 1 are not, or are rewarded.
        """
        return self.subject.once("ends", self._find_ends)

    def _find_ends(self) -> bool:
        true, pred, _ = self.pair_domain()
        if not isinstance(pred, str):
            return true == pred
        if pred not in ENDS or true not in _AT_ENDS:
            return False
        if self.domain is not None or true not in ENDS:
            return True
        of_one_hot, of_shares, of_positive = (
            self._values((*domains, False)) for domains in (("one_hot", pred), (pred, pred), (pred, "positive"))
        )
        if of_one_hot is None or of_shares is None:
            return False
        return of_positive is None or _is_negative_outside(of_positive, of_shares)

    def _values(self, domains: tuple[Domain, Domain, bool]) -> np.ndarray | None:
        """What a loss gives for each sample of these domains; None where it refuses them, or is not finite."""
        try:
            value = calls.value_of(self.subject, *self._pair(domains, 32, self.subject.rng("ends")))
        except Exception:
            # Whatever a part raises for inputs that may not be its own.
            return None
        return np.asarray(value) if np.all(np.isfinite(value)) else None

    def sample(self) -> tuple[tuple[Shape, str], ...]:
        """For each argument of a layer's call the shape of a sample and its domain."""
        return self.subject.once("sample", self._find_sample)

    def _pair(self, domains: tuple[Domain, Domain, bool], batch: int, rng: np.random.Generator) -> tuple[Any, ...]:
        shape = (batch, 4)
        y_true = draw(domains[0], rng, shape[:1] if domains[2] else shape)
        return y_true, draw(domains[1], rng, shape)

    def _find_pair(self) -> tuple[Domain, Domain, bool]:
        if self.domain is not None:
            bounds = all(isinstance(bound, int | float) for bound in self.domain)
            true, pred = [self.domain] * 2 if isinstance(self.domain, str) or bounds else list(self.domain)
            return true, pred, true in INTEGERS
        best, best_share = None, -1.0
        for domains in PAIRS:
            share = self._share(domains)
            if share > best_share + 0.1:
                best, best_share = domains, share
        if best is None:
            raise SubjectError("no inputs were found on which it is finite; give inputs= or domain=")
        return _SHARES if best == _REALS and self.subject.kind == "loss" and self._is_of_shares() else best

    def _is_of_shares(self) -> bool:
        """Whether a loss that takes all numbers is one of probabilities: only of these it is never negative.

        A cross-entropy that divides by the sum of its predictions and bounds them takes any, and jumps where the sum is 0.
        """
        of_reals, of_shares = self._values(_REALS), self._values(_SHARES)
        if of_reals is None or of_shares is None:
            return False
        return _is_negative_outside(of_reals, of_shares) and self._share(_SHARES) > 0.9

    def _share(self, domains: tuple[Domain, Domain, bool]) -> float:
        """The share of entries of `y_pred` on which the value depends; -1 where the part refuses, or is not finite."""
        rng = self.subject.rng("domain")
        y_true, y_pred = self._pair(domains, 8, rng)
        try:
            value = calls.value_of(self.subject, y_true, y_pred)
            moved = [
                calls.value_of(self.subject, y_true, np.where(_entry(y_pred, k), y_pred * 0.99, y_pred)) for k in range(y_pred.size)
            ]
        except Exception as error:
            # Whatever a part raises for inputs that may not be its own; B601 judges, where none are found.
            self.failures.append((f"y_true of {domains[0]}, y_pred of {domains[1]}", error))
            return -1.0
        if not np.all(np.isfinite(value)):
            return -1.0
        if self.subject.kind == "metric":
            return 1.0
        return sum(not np.array_equal(value, other) for other in moved) / y_pred.size

    def _sample(self, sample: Any, batch: int, rng: np.random.Generator) -> tuple[Any, ...]:
        made = []
        for shape, domain in sample:
            if isinstance(shape, list):
                made.append([draw(domain, rng, (batch, *each)) for each in shape])
            else:
                made.append(draw(domain, rng, (batch, *shape)))
        return tuple(made)

    def _find_sample(self) -> tuple[tuple[Any, str], ...]:
        """The first on which it runs and which matters to it; one that rounds its numbers is meant to be given integers."""
        runs: list[tuple[tuple[Any, str], ...]] = []
        for candidate in self._candidates():
            try:
                layer = self.subject.make()
            except SubjectError:
                layer = self.subject.instance()
            args = self._sample(candidate, 3, self.subject.rng("domain"))
            try:
                outputs = _numbers(layer(*args, **calls.training_of(self.subject)))
                if not all(np.all(np.isfinite(y)) for y in outputs):
                    self.failures.append((_described(candidate), ArithmeticError("its result is not finite")))
                    continue
                runs.append(candidate)
                nearby = calls.mapped(lambda x: x * 1.001 if x.dtype.kind == "f" else x + 1, args)
                moved = _numbers(layer(*nearby, **calls.training_of(self.subject)))
            except Exception as error:
                # As above.
                self.failures.append((_described(candidate), error))
                continue
            if any(not np.array_equal(a, b) for a, b in zip(outputs, moved, strict=True)):
                return candidate
            if len(runs) > 4:
                break
        if runs:
            return runs[0]
        raise SubjectError("no inputs were found on which it runs; give inputs=")

    def _candidates(self) -> Iterator[tuple[tuple[Any, str], ...]]:
        instance = self.subject.instance()
        known = _known_shapes(instance)
        if known is not None:
            yield known
        count = _positional(instance)
        reals = self.domain or "reals"
        for shape, domain in SAMPLES:
            named = domain if domain in INTEGERS else reals
            yield ((shape, named),) * count
        for shape in ((4,), (5, 4), (8, 8, 3)):
            yield (([shape, shape], reals),)
        if count == 1:
            for shape in ((4,), (5, 4)):
                yield ((shape, reals),) * 2


def _numbers(outputs: Any) -> list[np.ndarray]:
    tensors = [y for y in calls.flat(outputs) if ops.is_tensor(y)]
    return [np.asarray(ops.convert_to_numpy(ops.cast(y, "float32"))) for y in tensors]


def _entry(x: np.ndarray, k: int) -> np.ndarray:
    mark = np.zeros(x.shape, bool)
    mark.flat[k] = True
    return mark


def _known_shapes(instance: Any) -> tuple[tuple[Any, str], ...] | None:
    """The shapes that a model made of symbolic inputs, or a layer that is built, has."""
    inputs = getattr(instance, "inputs", None) if isinstance(instance, keras.Model) else None
    if inputs:
        shapes = [tuple(size or 5 for size in x.shape[1:]) for x in inputs]
        domains = ["ids" if "int" in str(x.dtype) else "reals" for x in inputs]
        if len(shapes) == 1:
            return ((shapes[0], domains[0]),)
        return ((shapes, domains[0]),)
    built = instance.get_build_config() if getattr(instance, "built", False) else None
    shape = (built or {}).get("input_shape")
    if isinstance(shape, tuple | list) and shape and all(size is None or isinstance(size, int) for size in shape):
        return ((tuple(size or 5 for size in shape[1:]), "reals"),)
    return None


def _positional(instance: Any) -> int:
    """How many arguments a layer's call needs."""
    parameters = list(inspect.signature(instance.call).parameters.values())
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in _CALL
    ]
    return max(len(needed), 1)


_CALL = ("training", "mask")


def _is_negative_outside(outside: np.ndarray, inside: np.ndarray) -> bool:
    """Whether a loss is negative on some numbers of a wider domain, and nowhere on its own."""
    return bool(np.any(outside < 0)) and bool(np.all(inside >= 0))


def _described(candidate: tuple[tuple[Any, str], ...]) -> str:
    return " and ".join(f"{domain} of the shape {shape} a sample" for shape, domain in candidate)


def _as_arrays(x: Any) -> Any:
    return calls.mapped(lambda leaf: ops.convert_to_numpy(leaf) if ops.is_tensor(leaf) else np.asarray(leaf), x)


def _resized(x: Any, batch: int) -> Any:
    """Arrays with as many rows as asked for, repeated where there are too few; what has no rows stays."""

    def one(array: np.ndarray) -> np.ndarray:
        if array.ndim == 0 or array.shape[0] == batch:
            return array
        return np.resize(array, (batch, *array.shape[1:]))

    return calls.mapped(one, x)
