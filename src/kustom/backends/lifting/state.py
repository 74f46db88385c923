"""The state of a function, found by running it in a scope that sees every read and write of a variable."""

from __future__ import annotations

# Below `signal`, whose numbers and handlers become members of an enumeration and back: ten times as long as the rest.
import _signal  # pyright: ignore[reportMissingImports]
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.errors import BranchError, FunctionError, KustomError

__all__ = ["BranchOnValue", "Scope", "bits_of", "made_each_time", "refusing", "whole"]


class Scope(keras.StatelessScope):
    """Gives variables their values while a function is traced, and notes which are read and which are written.

    A variable without a value here has that of the scope around, else its own. `Layer.losses` asks for all variables.

    Args:
        variables: The variables whose values are known.
        values: Their values: backend tensors of the variables' own dtypes.
        placeholder: Makes the value of a variable that has none yet, once for each variable: what is read twice must be
            the same, or no gradient finds its way.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable] = (),
        values: Sequence[Any] = (),
        *,
        placeholder: Callable[[keras.Variable], Any] | None = None,
    ) -> None:
        # Added losses are collected: else `add_loss` is dropped without a word.
        super().__init__(collect_losses=True)
        self.state_mapping = {id(variable): value for variable, value in zip(variables, values, strict=True)}
        self.seen: dict[int, keras.Variable] = {id(variable): variable for variable in variables}
        self.written: dict[int, keras.Variable] = {}
        self._placeholder = placeholder
        self._around = private.open_scope()

    def get_current_value(self, variable: keras.Variable) -> Any:
        """The value of `variable`, before any cast; None where it has none yet."""
        self.seen.setdefault(id(variable), variable)
        value = self.state_mapping.get(id(variable))
        if value is None and self._around is not None:
            value = self._around.get_current_value(variable)
        if value is None:
            value = private.own_value(variable)
        if value is None and self._placeholder is not None:
            value = self.state_mapping[id(variable)] = self._placeholder(variable)
        return value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Note what is assigned to a variable."""
        variable, value = update
        self.seen.setdefault(id(variable), variable)
        self.written[id(variable)] = variable
        self.state_mapping[id(variable)] = value


class BranchOnValue(Exception):
    """A function asked for a value that is not known while it is traced; the caller runs it without a trace.

    Args:
        line: Where it asked: `path/to/file.py:12`.
        reason: What the backend says of it.
    """

    def __init__(self, line: str, reason: str) -> None:
        super().__init__(f"{line}: {reason}")
        self.line = line
        self.reason = reason


def bits_of(value: int, most: int = 64) -> int:
    """How many bits a whole number has without its sign.

    Args:
        value: The number, which is an argument of a program.
        most: How many bits the widest integers have that there are.

    Raises:
        FunctionError: It does not fit.
    """
    bits = (value if value >= 0 else ~value).bit_length()
    if bits >= most:
        raise FunctionError(
            f"a compiled function was given the number {value if bits < 256 else f'of {bits} bits'}, and the widest integers of "
            f"{keras.backend.backend()} have {most} bits here. Name its argument in static_argnames, which makes it a part of the "
            "program, or give it as a float."
        )
    return bits


def made_each_time(variable: keras.Variable | None) -> BranchError:
    """What is raised where a function makes variables whenever it runs."""
    such = f", such as {variable.path!r}" if variable is not None else ""
    return BranchError(f"a compiled function makes new variables at each call{such}. Make them once: in `build`, or before it.")


@contextlib.contextmanager
def refusing(asks: Callable[[BaseException], bool]) -> Iterator[None]:
    """Say where a function asks for a value that is not known while it is traced.

    Args:
        asks: Whether an error is what the backend raises there. Keras adds to an error that leaves a layer's call what the
            call was given, and may fail to; so the errors before it are looked at, too.
    """
    try:
        yield
    except Exception as error:
        chain = list(_chain(error))
        asked = next((each for each in chain if asks(each)), None)
        if asked is None or any(isinstance(each, KustomError) for each in chain):
            raise
        lines = (_user_line(each) for each in (asked, *chain))
        line = next((line for line in lines if line), "an unknown place")
        reason = next((text for text in str(asked).splitlines() if text.strip()), "")
        raise BranchOnValue(line, reason) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those in whose handling it was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _user_line(error: BaseException) -> str:
    """The innermost line of the user's own code that an error came through; empty if there is none."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not private.is_library(trace.tb_frame.f_globals.get("__name__")) and "site-packages" not in code.co_filename:
            place = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class whole:  # noqa: N801  (it reads as the function that it is used as)
    """Ctrl-C inside waits for the end: results that are computed are to be back in the variables first."""

    __slots__ = ("_asked", "_before")

    def __enter__(self) -> None:
        self._asked: list[Any] = []
        # None where it was not set by Python, too.
        self._before = _signal.getsignal(_SIGINT) if threading.get_ident() == _MAIN else None
        if self._before is not None:
            _signal.signal(_SIGINT, self._ask)

    def _ask(self, *args: Any) -> None:
        self._asked.append(args)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            _signal.signal(_SIGINT, self._before)
            if self._asked and callable(self._before):
                self._before(*self._asked[0])


_MAIN = threading.main_thread().ident
_SIGINT = int(signal.SIGINT)
