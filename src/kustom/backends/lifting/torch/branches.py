"""Keras's branches and draws while a function is recorded: what would read a value on the host is an operation instead.

Both ways of a branch run, each with copies of the variables, and the condition selects what they return and what they
assigned. A seeded draw is made by a generator that is seeded anew, each step, with the number that eager Keras would use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch

from kustom.backends import keras as private
from kustom.backends.lifting.state import Scope

__all__ = ["exchanged"]

_core = private.backend_module("core")
_random = private.backend_module("random")
_nadam = private.backend_module("optimizers.torch_nadam").Nadam


class _Thread(threading.local):
    def __init__(self) -> None:
        # The runs that are open: the innermost is the last.
        self.runs: list[Any] = []
        # How many of Nadam's updates it is in.
        self.updates = 0


_thread = _Thread()


def _run() -> Any:
    """The run of this thread, or None; nothing is to be recorded while Keras infers shapes."""
    return _thread.runs[-1] if _thread.runs and _core.get_device() != "meta" else None


@contextlib.contextmanager
def exchanged(run: Any) -> Iterator[None]:
    """Have this thread's branches and draws be recorded by `run`."""
    with contextlib.ExitStack() as stack:
        for exchange in _exchanges:
            stack.enter_context(exchange)
        _thread.runs.append(run)
        stack.callback(_thread.runs.pop)
        yield


def _varies(x: Any) -> bool:
    run = _run()
    return run is not None and isinstance(x, torch.Tensor) and run.is_varying(x)


def _cond(plain: Callable[..., Any]) -> Callable[..., Any]:
    def cond(pred: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
        pred = pred.value if isinstance(pred, keras.Variable) else pred
        if not _varies(pred):
            return plain(pred, true_fn, false_fn)
        return _select([pred.bool()], [true_fn, false_fn])

    return cond


def _switch(plain: Callable[..., Any]) -> Callable[..., Any]:
    def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
        index = index.value if isinstance(index, keras.Variable) else index
        if not _varies(index):
            return plain(index, branches, *operands)
        index = torch.clamp(index, 0, len(branches) - 1)
        return _select([index == i for i in range(len(branches) - 1)], [lambda b=b: b(*operands) for b in branches])

    return switch


class _Branch(Scope):
    """Gives each variable a copy of its value, so that what is written in place is the branch's own."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, Any] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        if id(variable) not in self.state_mapping:
            value = super().get_current_value(variable)
            if value is None or _core.get_device() == "meta":
                return value
            copy = value.clone()
            self.state_mapping[id(variable)] = copy
            self._copies[id(variable)] = copy
        return super().get_current_value(variable)

    def changes(self) -> dict[int, keras.Variable]:
        """The variables that were assigned, by their `id`."""
        run = _run()
        for key, copy in self._copies.items():
            if run.value_of(copy).storage.writes:
                self.written.setdefault(key, self.seen[key])
        return self.written


def _select(conditions: list[Any], functions: list[Callable[[], Any]]) -> Any:
    """What the function returns and assigns whose condition is the first that holds; the last one's if none does."""
    run, scopes, results = _run(), [], []
    for function in functions:
        drawn = run.draws
        with _Branch() as scope:
            results.append(function())
        if scope.losses:
            run.refuse("an added loss in a branch")
        if run.draws != drawn:
            # Both ways run: the generator would go on in the one that eager Keras does not take, too.
            run.refuse("a draw without a seed in a branch")
        scopes.append(scope)
    changed = {key: variable for scope in scopes for key, variable in scope.changes().items()}
    for key, variable in changed.items():
        # What a branch leaves alone has the value of before.
        values = [scope.state_mapping.get(key) if key in scope.written else private.stored(variable) for scope in scopes]
        variable.assign(_choice(conditions, values))
    if results[0] is None or not keras.tree.flatten(results[0]):
        return results[0]
    flat = [keras.tree.flatten(result) for result in results]
    chosen = [_choice(conditions, [_tensor(each) for each in column]) for column in zip(*flat, strict=True)]
    return keras.tree.pack_sequence_as(results[0], chosen)


def _tensor(x: Any) -> Any:
    return x if x is None else _core.convert_to_tensor(x)


def _choice(conditions: list[Any], values: list[Any]) -> Any:
    chosen = values[-1]
    if chosen is None or all(value is chosen for value in values):
        return chosen
    for condition, value in zip(reversed(conditions), reversed(values[:-1]), strict=True):
        chosen = torch.where(condition, value, chosen)
    return chosen


def _seed_generator(plain: Callable[..., Any]) -> Callable[..., Any]:
    def torch_seed_generator(seed: Any) -> Any:
        run = _run()
        if run is None:
            return plain(seed)
        first, second = _random.draw_seed(seed)
        return run.seeded(first + second)

    return torch_seed_generator


def _sampler(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Draws that set torch's own generator for a moment: gamma, binomial and beta."""

    def sample(shape: Any, *parameters: Any, dtype: Any = None, seed: Any = None, **named: Any) -> Any:
        run = _run()
        if run is None:
            return plain(shape, *parameters, dtype=dtype, seed=seed, **named)
        first, second = _random.draw_seed(seed)
        names = list(named)
        tensors = [_core.convert_to_tensor(x) for x in (*parameters, *named.values())]

        def draw(values: list[Any]) -> list[Any]:
            number, *given = values
            keywords = dict(zip(names, given[len(parameters) :], strict=True))
            return [plain(shape, *given[: len(parameters)], dtype=dtype, seed=int(number), **keywords)]

        return run.call(draw, [first + second, *tensors])[0]

    return sample


def _numpy(plain: Callable[..., Any]) -> Callable[..., Any]:
    def convert_to_numpy(x: Any) -> Any:
        return x if _thread.updates and _varies(x) else plain(x)

    return convert_to_numpy


def _update(plain: Callable[..., Any]) -> Callable[..., Any]:
    # Nadam takes two of its numbers to the host; as tensors they give the same.
    def _parallel_update_step(self: Any, *args: Any) -> Any:
        _thread.updates += 1
        try:
            return plain(self, *args)
        finally:
            _thread.updates -= 1

    return _parallel_update_step


_exchanges = [
    private.Exchange(_core, "cond", _cond),
    private.Exchange(_core, "switch", _switch),
    private.Exchange(_core, "convert_to_numpy", _numpy),
    private.Exchange(_random, "torch_seed_generator", _seed_generator),
    *(private.Exchange(_random, name, _sampler) for name in ("gamma", "binomial", "beta")),
    private.Exchange(_nadam, "_parallel_update_step", _update),
]
