"""Fewer operations for the same numbers: what a recording does that nobody sees is left out.

Every rule asks about memory, since operations may write in place: a value is its tensor's place in a storage, and what the
storage holds depends on the writes before. A rule that is not sure leaves things as they are.
"""

from __future__ import annotations

from typing import Any

import torch

from kustom.backends.lifting.torch.recording import Call, Node, Recording, Storage, Value, values_in

__all__ = ["drop_copies", "drop_unused", "replace", "simplified"]

_aten = torch.ops.aten
# They give their argument as it is.
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
# They do where the shape is the same.
_SHAPED = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.reshape.default, _aten.squeeze.default}
# A constant of more entries than this is made anew each step.
_LARGE = 2**16


def simplified(recording: Recording) -> None:
    """Leave out what changes nothing, do once what is done twice, compute constants beforehand."""
    drop_unused(recording)
    _drop_aliases(recording)
    _fold(recording)
    _share(recording)
    drop_copies(recording)
    drop_unused(recording)
    _give_tensors(recording)


_BY_TENSOR = {
    **{getattr(_aten, name).Scalar: getattr(_aten, name).Tensor for name in ("_foreach_mul", "_foreach_mul_")},
    **{getattr(_aten, name).Scalar: getattr(_aten, name).Tensor for name in ("_foreach_div", "_foreach_div_")},
    **{getattr(_aten, name).Scalar: getattr(_aten, name).Tensor for name in ("_foreach_add", "_foreach_add_")},
    **{getattr(_aten, name).Tensor: getattr(_aten, name).Tensor for name in ("mul", "mul_", "div", "div_", "add", "sub")},
}


def _give_tensors(recording: Recording) -> None:
    """Numbers as tensors of the dtype they are computed in: torch makes one of each number, and then another, each time."""
    constants: dict[Any, Value] = {}
    if not recording.on_host:
        return
    for node in recording.nodes:
        number = node.args[1] if len(node.args) == 2 else None
        if node.func not in _BY_TENSOR or isinstance(number, bool) or not isinstance(number, int | float):
            continue
        likes = [value.like for value in values_in(node.args)]
        dtypes = {like.dtype for like in likes}
        if dtypes not in ({torch.float32}, {torch.float64}):
            continue
        key = (*dtypes, type(number), repr(number))
        if key not in constants:
            tensor = torch.tensor(number, dtype=likes[0].dtype)
            constants[key] = Value("constant", tensor, Storage(state=False, varying=False))
            constants[key].like = tensor.to("meta")
        node.func, node.args = _BY_TENSOR[node.func], (node.args[0], constants[key])


def replace(recording: Recording, other: dict[Value, Value]) -> None:
    """Use other values in the place of some."""
    if not other:
        return

    def final(value: Value) -> Value:
        while value in other:
            value = other[value]
        return value

    def go(structure: Any) -> Any:
        if isinstance(structure, Value):
            return final(structure)
        if isinstance(structure, list):
            return [go(each) for each in structure]
        if isinstance(structure, tuple):
            return tuple(go(each) for each in structure)
        return structure

    for node in recording.nodes:
        node.args = go(node.args)
        node.kwargs = {name: go(value) for name, value in node.kwargs.items()}
        node.written = [final(value) for value in node.written]
        node.seed = node.seed and final(node.seed)
    recording.outputs = [final(value) for value in recording.outputs]
    recording.gradients = [(leaf, old, new and final(new), matters) for leaf, old, new, matters in recording.gradients]


def _keep_nodes(recording: Recording, keep: list[bool]) -> None:
    """Keep some of the operations, and count the writes anew."""
    nodes = [node for node, kept in zip(recording.nodes, keep, strict=True) if kept]
    storages = {value.storage for node in recording.nodes for value in (*node.values(), *node.outputs) if value is not None}
    for storage in storages:
        storage.writes = []
    recording.nodes = nodes
    for position, node in enumerate(nodes):
        for value in node.written:
            value.storage.writes.append(position)


def _results(recording: Recording) -> list[Value]:
    return [*recording.outputs, *(new for _, _, new, _ in recording.gradients if new is not None)]


def drop_unused(recording: Recording) -> None:
    """Leave out what neither the outputs nor the state afterwards depend on."""
    live = set(_results(recording))
    memory = {value.storage for value in live}
    keep = []
    for node in reversed(recording.nodes):
        writes = any(value.storage.state or value.kind == "input" or value.storage in memory for value in node.written)
        # What gives and writes nothing looks whether something is right, such as a decomposition.
        checks = not isinstance(node.func, Call) and not node.func._schema.returns and not node.written
        used = node.random or writes or checks or any(value in live for value in node.outputs)
        keep.append(used)
        if used:
            for value in node.values():
                live.add(value)
                memory.add(value.storage)
    _keep_nodes(recording, keep[::-1])


def _drop_aliases(recording: Recording) -> None:
    other: dict[Value, Value] = {}
    keep = []
    for node in recording.nodes:
        out = node.outputs[0] if node.outputs else None
        alias = False
        if out is not None and (node.func in _SAME or (node.func in _SHAPED and _is_like(out, node.args[0]))):
            alias = out.storage is node.args[0].storage
        if alias and out is not None:
            other[out] = node.args[0]
        keep.append(not alias)
    replace(recording, other)
    _keep_nodes(recording, keep)


def _is_like(a: Value, b: Value) -> bool:
    return a.like.size() == b.like.size() and a.like.stride() == b.like.stride() and a.like.dtype == b.like.dtype


def _is_pure(node: Node) -> bool:
    """Whether all that an operation does is to give new values, which nobody writes into."""
    fresh = [value for value in node.outputs if value is not None]
    if node.random or node.written or not fresh or isinstance(node.func, Call):
        return False
    return not any(value.storage.writes for value in fresh)


def _fold(recording: Recording) -> None:
    """What depends on nothing that varies was computed in the run."""
    keep = []
    for node in recording.nodes:
        fresh = [value for value in node.outputs if value is not None]
        constant = _is_pure(node) and not any(value.storage.varying for value in (*fresh, *node.values()))
        if constant and all(value.kept is not None and value.kept.numel() <= _LARGE for value in fresh):
            for value in fresh:
                value.kind, value.tensor = "constant", value.kept
        else:
            constant = False
        keep.append(not constant)
    _keep_nodes(recording, keep)


def _share(recording: Recording) -> None:
    """Do once what is done twice with the same values."""
    other: dict[Value, Value] = {}
    found: dict[Any, Node] = {}
    keep = []
    for position, node in enumerate(recording.nodes):
        node.args = _with(node.args, other)
        node.kwargs = {name: _with(value, other) for name, value in node.kwargs.items()}
        same = None
        if _is_pure(node) and node.seed is None:
            versions = tuple(sum(write < position for write in value.storage.writes) for value in node.values())
            key = (node.func, _key(node.args), _key(tuple(node.kwargs.items())), versions)
            same = found.setdefault(key, node)
        if same is not None and same is not node:
            other |= {a: b for a, b in zip(node.outputs, same.outputs, strict=True) if a is not None and b is not None}
            keep.append(False)
        else:
            keep.append(True)
    replace(recording, other)
    _keep_nodes(recording, keep)


def _with(structure: Any, other: dict[Value, Value]) -> Any:
    if isinstance(structure, Value):
        return other.get(structure, structure)
    if isinstance(structure, list | tuple):
        return type(structure)(_with(each, other) for each in structure)
    return structure


def _key(structure: Any) -> Any:
    """Something to compare arguments by: 1, 1.0 and True are three."""
    if isinstance(structure, list | tuple):
        return tuple(_key(each) for each in structure)
    if isinstance(structure, Value):
        return structure
    return (type(structure), repr(structure) if isinstance(structure, float) else structure)


def drop_copies(recording: Recording) -> None:
    """A copy of what is not written into while the copy is in use, and which is not written into itself, is its source."""
    last: dict[Any, int] = {}
    for position, node in enumerate(recording.nodes):
        for value in node.values():
            last[value.storage] = position
    for value in _results(recording):
        last[value.storage] = len(recording.nodes)
    other: dict[Value, Value] = {}
    keep = []
    for position, node in enumerate(recording.nodes):
        out = node.outputs[0] if node.outputs else None
        copy = node.func is _aten.clone.default and out is not None and not out.storage.writes
        if copy and out is not None:
            source = node.args[0]
            until = last.get(out.storage, position)
            # What is returned is the caller's own; state and inputs are written into between the steps, too.
            own = source.storage.state or source.kind == "input" or until == len(recording.nodes)
            between = any(position < write <= until for write in source.storage.writes)
            copy = _is_like(out, source) and not between and not (own and until == len(recording.nodes))
            if copy:
                other[out] = source
                last[source.storage] = max(last.get(source.storage, 0), until)
        keep.append(not copy)
    replace(recording, other)
    # The views of a copy that is left out are views of its source.
    merged = {old.storage: new.storage for old, new in other.items()}
    for node in recording.nodes:
        for value in values_in(node.outputs):
            while value.storage in merged:
                value.storage = merged[value.storage]
    _keep_nodes(recording, keep)
