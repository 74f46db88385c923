"""What stands in front of a recording: the state is read from the variables at each call, and is right after it.

The operations write into the variables' own tensors, as eager Keras does. So between two calls the variables are the truth,
and what a user once obtained from one stays what it is in eager Keras. A call that fails puts back what it had written. One
call of the interpreter cannot be torn by Ctrl-C; where Python runs in between, Ctrl-C waits for the end.

What depends on anything but tensors is as it was when the function was recorded: Python's and NumPy's random numbers, the
attributes and globals that it looked at, the arrays that it read, `requires_grad`, the device.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import keras
import torch

from kustom.backends import keras as private
from kustom.backends.lifting.state import made_each_time
from kustom.backends.lifting.torch import lowering
from kustom.backends.lifting.torch.graph import simplified
from kustom.backends.lifting.torch.layout import relaxed
from kustom.backends.lifting.torch.recorder import chance, give_chance, record
from kustom.backends.lifting.torch.recording import Call, Node, Recording, Value

__all__ = ["Program"]

_HEAVY = ("convolution", "lstm", "gru", "rnn")


class Program:
    """A function of tensors that reads and writes Keras variables, compiled for tensors of one kind (shapes and dtypes).

    Args:
        f: From a list of tensors to a list of tensors.
        examples: Tensors as those that it will be given.
        compiler: None, or "inductor", whose compiling takes long.

    Raises:
        BranchOnValue: `f` asks for the value of a tensor.
    """

    def __init__(self, f: Callable[[list[Any]], list[Any]], examples: Sequence[Any], *, compiler: str | None = None) -> None:
        self._f = f
        self._compiler = compiler
        self._is_recorded = torch.is_grad_enabled()
        self._record(examples)

    def _record(self, examples: Sequence[Any]) -> None:
        with torch.set_grad_enabled(self._is_recorded):
            recording = record(self._f, examples)
            if recording.made:
                # They have their first values now, and are state from here on.
                recording = record(self._f, examples)
        if recording.made:
            raise made_each_time(recording.made[0])
        used = list(recording.variables.values())
        owners = {id(value): variable for value, variable in _by_tensor(recording)}
        simplified(recording)
        relaxed(recording, examples)
        self._recording = recording
        self._kinds = [(example.shape, example.dtype) for example in examples]
        self._cells = [_Cell(owners.get(id(value)), value.tensor) for value in recording.state]
        writes = [bool(value.storage.writes) for value in recording.state]
        self.variables: list[keras.Variable] = _once(used)
        self.written: list[keras.Variable] = _once(
            [
                cell.variable
                for cell, is_written in zip(self._cells, writes, strict=True)
                if is_written and cell.variable is not None
            ]
        )
        self.heavy = _is_heavy(recording)
        self._written = [i for i, is_written in enumerate(writes) if is_written]
        self._fragile = _fragile(recording)
        self._draws = any(node.random for node in recording.nodes)
        self._many = len(recording.outputs)
        self._gradients = recording.gradients
        self._plain: lowering.Python | None = None
        self._engine = self._lowered()
        calls = any(isinstance(node.func, Call) or node.seed is not None for node in recording.nodes)
        self._interruptible = calls or not isinstance(self._engine, lowering.Script)

    def _results(self) -> list[Value]:
        return [*self._recording.outputs, *(new for _, _, new, _ in self._gradients if new is not None)]

    def _lowered(self) -> Any:
        if self._compiler is not None:
            return lowering.Python(self._recording, self._results(), compiler=self._compiler)
        try:
            return lowering.Script(self._recording, self._results())
        except (lowering.NotLowered, AttributeError):
            # AttributeError: the interpreter's names have moved.
            return self._python()

    def _python(self) -> lowering.Python:
        if self._plain is None:
            self._plain = lowering.Python(self._recording, self._results())
        return self._plain

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """One step."""
        self._check([(x.shape, x.dtype) for x in tensors])
        self._refresh(tensors)
        with torch.no_grad(), self._held():
            out = self._do("run", self._fragile, list(tensors))
            if self._gradients:
                self._leave_gradients(out[self._many :])
        return out[: self._many]

    # What can fail while it runs is put back here.
    can_raise = False

    def pick(self, data: Sequence[Any], rows: Any, index: int, *, keep: bool = False) -> list[Any]:
        """One step, with the batch of number `index` of those that `loop` takes."""
        return self.run(_batch(data, rows, index))

    def loop(self, data: Sequence[Any], rows: Any, start: int, count: int, *, keep: bool = False) -> list[Any]:
        """`count` steps; for each output, a scalar, the sum over them in float64.

        Args:
            data: The arrays that batches are of.
            rows: For each step the rows of its batch, shape `(steps, batch)`; None where `data` has an axis for the steps.
            start: The first step.
            count: How many steps.
            keep: Whether the values before will be asked for: `keep` has copied them.
        """
        data = list(data)
        given = [(a.shape[1:] if rows is None else (*rows.shape[1:], *a.shape[1:]), a.dtype) for a in data]
        self._check(given)
        device = data[0].device if data else "cpu"
        totals = [torch.zeros((), dtype=torch.float64, device=device) for _ in range(self._many)]
        if not count:
            return totals
        with torch.no_grad(), self._held():
            if not self._gradients:
                self._do("loop", self._written, data, rows, start, count, totals)
                return totals
            kept = self._copies(self._written)
            try:
                # The first may find no gradient where the others find one, and the last leaves its own.
                self._single(data, rows, start, totals)
                last = start + count - 1
                if last > start + 1:
                    self._refresh(_batch(data, rows, start))
                    self._do("loop", self._written, data, rows, start + 1, last - start - 1, totals)
                if last > start:
                    self._single(data, rows, last, totals)
            except Exception:
                self._put_back(kept)
                raise
        return totals

    def _check(self, given: list[tuple[Any, Any]]) -> None:
        # Sizes are numbers in the operations: others would be computed with in silence, and wrongly.
        if given != self._kinds:
            raise ValueError(f"this program is for tensors of {self._kinds}, not of {given}.")

    def wait(self) -> None:
        """Until what was called last has been computed: it has been, on a CPU."""

    def _single(self, data: list[Any], rows: Any, i: int, totals: list[Any]) -> None:
        for total, out in zip(totals, self.run(_batch(data, rows, i)), strict=True):
            total.add_(out)

    def _leave_gradients(self, found: list[Any]) -> None:
        given = iter(found)
        for leaf, _, new, _ in self._gradients:
            gradient = None if new is None else next(given)
            leaf.grad = new.tensor if new is not None and new.kind == "state" else gradient

    def keep(self) -> Any:
        """A copy of everything that a step writes, the state of the random numbers included."""
        _, values, _, generators = self._copies(self._written)
        return [self._cells[i] for i in self._written], values, chance(), generators

    def restore(self, kept: Any) -> None:
        """Put back what `keep` kept."""
        cells, values, drawn, generators = kept
        self._put_back(([cell.tensor() for cell in cells], values, drawn, generators))

    def _refresh(self, examples: Sequence[Any]) -> None:
        """Record anew where a leaf has no gradient now and had one then, or has another."""
        if any(matters and leaf.grad is not before for leaf, before, _, matters in self._gradients):
            self._record(examples)

    def _do(self, what: str, which: list[int], *args: Any) -> Any:
        """Run one step or many; where that fails, the state is that of before."""
        state = [cell.tensor() for cell in self._cells]
        generators = self._recording.generators
        kept = self._copies(which)
        try:
            return getattr(self._engine, what)(state, *args, generators)
        except Exception as error:
            self._put_back(kept)
            # The interpreter makes every error one of its own; Python's is the user's.
            if not isinstance(self._engine, lowering.Script) or not isinstance(error, RuntimeError):
                raise
        if what == "loop":
            for total in args[-1]:
                total.zero_()
        try:
            return getattr(self._python(), what)(state, *args, generators)
        except Exception:
            self._put_back(kept)
            raise

    def _copies(self, which: list[int]) -> Any:
        drawn = chance() if self._draws else None
        generators = [(generator, generator.get_state()) for generator in self._recording.generators]
        tensors = [self._cells[i].tensor() for i in which]
        with torch.no_grad():
            return tensors, [tensor.clone() for tensor in tensors], drawn, generators

    def _put_back(self, kept: Any) -> None:
        tensors, values, drawn, generators = kept
        _copy(tensors, values)
        if drawn is not None:
            give_chance(drawn)
        for generator, held in generators:
            generator.set_state(held)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Ctrl-C waits for the end of what is inside, where Python runs in the middle of a step."""
        if not self._interruptible or threading.current_thread() is not threading.main_thread():
            yield
            return
        came: list[tuple[int, FrameType | None]] = []
        before = signal.getsignal(signal.SIGINT)
        if before is None:
            # Not set by Python.
            yield
            return
        signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if came and callable(before):
                before(*came[0])


class _Cell:
    """A tensor of the state: a variable's, whichever it has now, or one that the function found elsewhere."""

    __slots__ = ("_alias", "_found", "_place", "variable")

    def __init__(self, variable: keras.Variable | None, tensor: Any) -> None:
        self.variable = variable
        self._set(tensor)

    def _set(self, tensor: Any) -> None:
        self._found, self._alias, self._place = tensor, tensor.detach(), tensor.data_ptr()

    def tensor(self) -> Any:
        """The tensor, without its gradient."""
        found = self._found if self.variable is None else private.own_value(self.variable)
        if found is not self._found or found.data_ptr() != self._place:
            self._set(found)
        return self._alias


def _is_heavy(recording: Recording) -> bool:
    """Whether there is a convolution, or a recurrence: one matrix that is multiplied with again and again."""
    times: collections.Counter[Value] = collections.Counter()
    for node in recording.nodes:
        name = str(node.func)
        if any(heavy in name for heavy in _HEAVY):
            return True
        if name.startswith(("aten.mm.", "aten.addmm.", "aten.bmm.")):
            times.update(set(node.values()))
    return any(count > 4 for count in times.values())


def _by_tensor(recording: Recording) -> Iterator[tuple[Value, keras.Variable]]:
    for value in recording.state:
        variable = recording.variables.get(id(value.tensor))
        if variable is not None:
            yield value, variable


def _once(variables: list[keras.Variable]) -> list[keras.Variable]:
    return list({id(variable): variable for variable in variables}.values())


def _fragile(recording: Recording) -> list[int]:
    """The state that is written before the last operation that may fail: the others are written whole or not at all."""
    everywhere = not recording.on_host
    risky = [position for position, node in enumerate(recording.nodes) if _may_fail(node, everywhere)]
    last = max(risky, default=-1)
    return [i for i, value in enumerate(recording.state) if value.storage.writes and value.storage.writes[0] < last]


# What may fail though the shapes are right: a value is out of its range, Python is called.
_RISKS = """
    index gather scatter embedding take put nll_loss ctc one_hot bincount histc multinomial bernoulli normal poisson binomial
    linalg cholesky solve inverse svd eig qr lstsq assert
""".split()


def _may_fail(node: Node, everywhere: bool) -> bool:
    if isinstance(node.func, Call) or node.seed is not None:
        return True
    # A device's memory may be used up anywhere; the host's hardly ever is in a way that can be caught.
    name = node.func.name()
    if any(division in name for division in ("div", "remainder", "fmod")):
        # By 0: of whole numbers there is no infinity.
        return not any(value.like.is_floating_point() or value.like.is_complex() for value in node.values())
    return (everywhere and torch.Tag.inplace not in node.func.tags) or any(risk in name for risk in _RISKS)


def _batch(data: Sequence[Any], rows: Any, i: int) -> list[Any]:
    return [a[i] for a in data] if rows is None else [a.index_select(0, rows[i]) for a in data]


def _copy(targets: list[Any], values: list[Any]) -> None:
    if targets:
        # In one call, so that nothing is left half done.
        with torch.no_grad():
            torch._foreach_copy_(targets, values)  # pyright: ignore[reportPrivateImportUsage]
