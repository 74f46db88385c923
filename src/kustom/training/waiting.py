"""What a file holds of an optimizer that is not built yet: it waits for the build, and is not lost.

Keras reads an optimizer's variables where they are there already, and passes over those of one that is not built, which
then begins anew. The optimizer of a compiled model is built when the model is loaded; of those that stand in attributes
nobody knows for which variables. So the values wait here, and are assigned by the build, which the first step does. Its count
and its rate are there before, and are read at once. Where the model is saved in between, the values go into the file as they
came.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private

__all__ = ["let_wait"]


def let_wait(optimizer: Any) -> None:
    """From now on, what an optimizer is to load before it is built waits for its build."""
    space, cls = vars(optimizer), type(optimizer)
    if optimizer.built or "load_own_variables" in space:
        return

    def load_own_variables(store: Any) -> None:
        if optimizer.built or len(store.keys()) <= len(optimizer.variables):
            cls.load_own_variables(optimizer, store)
            return
        kept = {key: _read(store[key]) for key in store.keys()}  # noqa: SIM118  (Keras's stores are no mappings)
        for i, variable in enumerate(optimizer.variables):
            variable.assign(kept[str(i)])

        def build(self: Any, variables: Any) -> None:
            for name in _REPLACED & space.keys():
                del space[name]
            # The user may have set them since.
            now = [keras.ops.copy(private.told(variable)) for variable in self.variables]
            cls.build(self, variables)
            cls.load_own_variables(self, kept)
            for variable, value in zip(self.variables, now, strict=False):
                variable.assign(value)

        def save_own_variables(store: Any) -> None:
            now = {str(i): keras.ops.convert_to_numpy(variable) for i, variable in enumerate(optimizer.variables)}
            for key, value in (kept | now).items():
                store[key] = value

        at_once = private.built_at_once(build)
        space["build"] = lambda variables: at_once(optimizer, variables)
        space["save_own_variables"] = save_own_variables

    space["load_own_variables"] = load_own_variables


_REPLACED = {"build", "load_own_variables", "save_own_variables"}


def _read(value: Any) -> np.ndarray:
    # A file's datasets can be read for as long as it is open.
    return keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else np.array(value)
