"""What a part is called with: made from its kind and domain, as a caller of Keras would, or given by the user.

For a loss or metric the domain is found by trying: real numbers first, then what else such parts take. A candidate counts
where the part accepts it and its value is finite; of those, the one where most entries of `y_pred` matter, so that a loss
that clips is looked at where it does not. For a layer the ranks are tried that its kind of layers take.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, stepping
from kustom.checking.domains import AT_ENDS, ENDS, INTEGERS, PAIRS, SAMPLES, Domain, Shape, draw
from kustom.errors import SubjectError

__all__ = ["Inputs"]

_REALS, _SHARES = PAIRS[:2]
# Targets that are shares, beside predictions that a softmax or a distance is taken of.
_LOGITS: tuple[Domain, Domain, bool] = ("probabilities", "reals", False)


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
        if self.subject.kind == "optimizer":
            return stepping.steps_for(rng)
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
        """Whether targets and predictions may be the least and the largest of their domain, exactly 0 and 1.

        Where the domain was found by trying, numbers that add up to 1 may stand for any that are positive. They are
        probabilities to it if targets of 0 and 1 are taken, and predictions above 1 are not, or are rewarded.
        """
        return self.subject.once("ends", self._find_ends)

    def _find_ends(self) -> bool:
        true, pred, _ = self.pair_domain()
        if not isinstance(pred, str):
            return true == pred
        if pred not in ENDS or true not in AT_ENDS:
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
        """What a loss or metric gives for each sample of these domains; None where it refuses them, or is not finite."""
        one_by_one = self.subject.kind == "metric"
        args = self._pair(domains, 8 if one_by_one else 32, self.subject.rng("ends"))
        rows = [tuple(x[k : k + 1] for x in args) for k in range(len(args[0]))] if one_by_one else [args]
        try:
            value = np.concatenate([calls.value_of(self.subject, *row) for row in rows])
        except Exception:
            # Whatever a part raises for inputs that may not be its own.
            return None
        return value if np.all(np.isfinite(value)) else None

    def sample(self) -> tuple[tuple[Shape, str], ...]:
        """For each argument of a layer's call the shape of a sample and its domain."""
        return self.subject.once("sample", self._find_sample)

    def others(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """What else was made for the part and runs here: each a candidate for `take`, and its arguments."""
        if self.given is not None:
            return
        rng = self.subject.rng("inputs")
        if self.subject.kind in ("loss", "metric") and self.domain is None:
            for domains in PAIRS:
                if domains != self.pair_domain() and self._share(domains) >= 0:
                    yield domains, self._pair(domains, 3, rng)
        elif self.subject.kind in ("layer", "model"):
            for candidate in self._candidates():
                args = self._sample(candidate, 3, rng)
                if candidate != self.sample() and self._runs_on(candidate, args) is not None and self._fits_instance(args):
                    yield candidate, args

    def take(self, candidate: Any) -> None:
        """Take another candidate from now on, and forget what was found with the last."""
        known = self.subject.known
        for name in ("ends", "zeros", "scale", "steady", "draws"):
            known.pop(name, None)
        known["pair" if self.subject.kind in ("loss", "metric") else "sample"] = candidate

    def _fits_instance(self, args: tuple[Any, ...]) -> bool:
        """Whether the part that was given takes these, too: it may be built for others."""
        try:
            calls.call(self.subject, self.subject.instance(), *args)
        except Exception:
            # As in `_runs_on`.
            return False
        return True

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
        if best == _REALS and self.subject.kind == "loss" and self._is_of_shares():
            return _LOGITS if self._is_of_logits() else _SHARES
        return best

    def _is_of_shares(self) -> bool:
        """Whether a loss that takes all numbers is one of probabilities: only of these it is never negative.

        A cross-entropy that divides by the sum of its predictions and bounds them takes any, and jumps where the sum is 0.
        """
        of_reals, of_shares = self._values(_REALS), self._values(_SHARES)
        if of_reals is None or of_shares is None:
            return False
        return _is_negative_outside(of_reals, of_shares) and self._share(_SHARES) > 0.9

    def _is_of_logits(self) -> bool:
        """Whether a loss whose targets are shares takes all numbers as predictions: their scale counts, and each of them."""
        of_logits = self._values(_LOGITS)
        if of_logits is None or bool(np.any(of_logits < 0)) or self._share(_LOGITS) <= 0.9:
            return False
        y_true, y_pred = self._pair(_LOGITS, 32, self.subject.rng("ends"))
        return not calls.same([of_logits], [calls.value_of(self.subject, y_true, 2 * y_pred)])

    def takes_zeros(self) -> bool:
        """Whether targets and predictions of 0 are legal to a loss whose domain was found by trying.

        They are where it takes all numbers, though what it gives for some of them says nothing; not where a scale is divided by.
        """
        return self.subject.once("zeros", self._find_zeros)

    def _find_zeros(self) -> bool:
        if self.domain is not None or self.given is not None or self._values(_REALS) is None:
            return False
        y_true, y_pred = self._pair(_REALS, 32, self.subject.rng("ends"))
        of_ones, of_twos = (calls.value_of(self.subject, y_true, k * y_pred) for k in (1, 2))
        return not calls.same(of_ones, of_twos)

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
        """The first on which it runs, which matters to it, and of which it promises the shape that comes out.

        One that rounds its numbers is meant to be given integers; one whose `compute_output_shape` is of images is meant to be
        given these, though it may run on a sequence. Where it promises right for nothing it is S202 that says so.
        """
        runs: list[tuple[tuple[Any, str], ...]] = []
        matters: list[tuple[tuple[Any, str], ...]] = []
        for candidate in self._candidates():
            args = self._sample(candidate, 3, self.subject.rng("domain"))
            layer = self._runs_on(candidate, args)
            if layer is None:
                continue
            runs.append(candidate)
            try:
                nearby = calls.mapped(lambda x: x * 1.001 if x.dtype.kind == "f" else x + 1, args)
                given, moved = (_numbers(layer(*each, **calls.training_of(self.subject))) for each in (args, nearby))
            except Exception as error:
                # As in `_runs_on`.
                self.failures.append((_described(candidate), error))
                continue
            if any(not np.array_equal(a, b) for a, b in zip(given, moved, strict=True)):
                if self._is_as_promised(candidate):
                    return candidate
                matters.append(candidate)
            if len(runs) > 4:
                break
        if runs:
            return [*matters, *runs][0]
        if not self.subject.making.is_class:
            # A copy by a config that has lost something may run on nothing: C102 says so, of the part itself.
            for candidate in self._candidates():
                if self._runs_on(candidate, self._sample(candidate, 3, self.subject.rng("domain")), itself=True) is not None:
                    self.subject.making.broken = "a copy by its config fails when it is called: see C102"
                    return candidate
        raise SubjectError("no inputs were found on which it runs; give inputs=")

    def _runs_on(self, candidate: tuple[tuple[Any, str], ...], args: tuple[Any, ...], itself: bool = False) -> Any:
        """A layer that has been called with these; None where it refuses them, or its result is not finite."""
        try:
            layer = self.subject.instance() if itself else self.subject.make()
        except SubjectError:
            layer = self.subject.instance()
        try:
            outputs = _numbers(layer(*args, **calls.training_of(self.subject)))
        except Exception as error:
            # Whatever a part raises for inputs that may not be its own; B601 judges, where none are found.
            self.failures.append((_described(candidate), error))
            return None
        if not all(np.all(np.isfinite(y)) for y in outputs):
            self.failures.append((_described(candidate), ArithmeticError("its result is not finite")))
            return None
        return layer

    def _is_as_promised(self, candidate: tuple[tuple[Any, str], ...]) -> bool:
        """Whether a `compute_output_shape` of the layer's own gives the shapes that come out.

        For other sizes than the candidate's, so that it is not by chance that two of them are the same.
        """
        try:
            layer = self.subject.make()
        except SubjectError:
            return True
        if private.is_default(layer.compute_output_shape) or private.is_functional(layer):
            return True
        other = tuple((_larger(shape), domain) for shape, domain in candidate)
        args = self._sample(other, 7, self.subject.rng("promise"))
        try:
            shapes = [y.shape for y in _numbers(layer(*args, **calls.training_of(self.subject)))]
            said = calls.shapes_in(layer.compute_output_shape(*(calls.shape_of(x, 7) for x in args)))
        except NotImplementedError:
            # Keras's own word for a layer whose shape it cannot tell.
            return True
        except Exception:
            # Whatever a part raises for a shape that may not be for it.
            return False
        # What has lost its batch was made of inputs that had no other axis.
        return len(said) == len(shapes) and all(map(calls.fits, said, shapes)) and all(shape[:1] == (7,) for shape in shapes)

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


def _larger(shape: Any) -> Any:
    return [_larger(each) for each in shape] if isinstance(shape, list) else tuple(size + 2 for size in shape)


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
    def one(leaf: Any) -> Any:
        if calls.is_object(leaf):
            return leaf
        return ops.convert_to_numpy(leaf) if ops.is_tensor(leaf) else np.asarray(leaf)

    return calls.mapped(one, x)


def _resized(x: Any, batch: int) -> Any:
    """Arrays with as many rows as asked for, repeated where there are too few; what has no rows stays."""

    def one(array: np.ndarray) -> np.ndarray:
        if calls.is_object(array) or array.ndim == 0 or array.shape[0] == batch:
            return array
        return np.resize(array, (batch, *array.shape[1:]))

    return calls.mapped(one, x)
