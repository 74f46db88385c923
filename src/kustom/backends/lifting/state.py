"""The state of a function, found by running it in a scope that sees every read and write of a variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kustom.backends import keras as private

__all__ = ["BranchOnValue", "Scope", "discovering", "holding"]


class BranchOnValue(Exception):
    """A function asks for the value of a tensor, which is another at each step, so that no program can be made of it.

    Args:
        line: Where it asks, as `file:line` of the user's code.
        what: What it asks for.
    """

    def __init__(self, line: str, what: str = "the value of a tensor") -> None:
        super().__init__(f"{line} asks for {what}")
        self.line = line
        self.what = what


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


def discovering(placeholder: Callable[[keras.Variable], Any]) -> Scope:
    """A scope that finds what a function reads and writes; variables made inside have values when it has closed.

    It must be opened outside of the backend's trace: when it closes, Keras initializes what was made, for good.
    """
    return Scope(placeholder=placeholder)


def holding(variables: Sequence[keras.Variable], values: Sequence[Any]) -> Scope:
    """A scope in which `variables` have `values`."""
    return Scope(variables, values)
