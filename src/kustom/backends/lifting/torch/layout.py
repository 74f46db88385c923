"""Images stay as they lie in memory.

Keras has the channels last, and copies an image into another layout before each pooling, since it may be traced by what
wants that; the convolution after it copies it back. torch's pooling gives the same numbers in either layout. Whether
everything after it still fits is seen by running it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kustom.backends.lifting.torch import lowering
from kustom.backends.lifting.torch.graph import drop_copies, drop_unused, replace
from kustom.backends.lifting.torch.recorder import chance, give_chance
from kustom.backends.lifting.torch.recording import Node, Recording, Value, values_in

__all__ = ["relaxed"]

_aten = torch.ops.aten
_POOLS = {
    _aten.max_pool2d_with_indices.default,
    _aten.max_pool2d_with_indices_backward.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool2d_backward.default,
}

_FORMATS = {torch.contiguous_format, torch.channels_last}


def relaxed(recording: Recording, examples: Sequence[Any]) -> None:
    """Leave out the copies of images before pooling, where all goes on without them."""
    copies = [node for node in recording.nodes if _is_copy(node)]
    users: dict[Value, list[Node]] = {}
    for node in recording.nodes:
        for value in node.values():
            users.setdefault(value, []).append(node)
    results = {*recording.outputs, *(new for _, _, new, _ in recording.gradients)}
    other = {}
    for node in copies:
        out, source = node.outputs[0], node.args[0]
        if out is None or out in results:
            continue
        pooled = all(_takes_either(user) for user in users.get(out, []))
        if pooled and not (out.storage.writes or source.storage.writes):
            other[out] = source
    if not other:
        return
    before = [(node, node.args, node.kwargs, node.written) for node in recording.nodes], recording.outputs, recording.gradients
    replace(recording, other)
    recording.nodes = [node for node in recording.nodes if not any(value in other for value in values_in(node.outputs))]
    values = [value for node in recording.nodes for value in values_in(node.outputs)]
    try:
        found = _tried(recording, examples)
    except RuntimeError:
        # A view that needs the copy.
        kept, recording.outputs, recording.gradients = before
        for node, args, kwargs, written in kept:
            node.args, node.kwargs, node.written = args, kwargs, written
        recording.nodes = [node for node, *_ in kept]
        return
    for value, like in zip(values, found, strict=True):
        if value.like is not None:
            value.like = like
    drop_copies(recording)
    drop_unused(recording)


def _is_copy(node: Node) -> bool:
    if node.func is not _aten.clone.default or node.kwargs.get("memory_format") != torch.contiguous_format:
        return False
    like = node.args[0].like
    return like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)


def _takes_either(node: Node) -> bool:
    """Whether an operation gives the same in either layout: pooling, or a copy into a layout of its own."""
    return node.func in _POOLS or (node.func is _aten.clone.default and node.kwargs.get("memory_format") in _FORMATS)


def _tried(recording: Recording, examples: Sequence[Any]) -> list[Any]:
    """What a step makes, on copies of the state, as tensors without numbers."""
    found: list[Any] = []

    def note(made: Any) -> None:
        is_tensor = isinstance(made, torch.Tensor)
        like = torch.empty_strided(made.size(), made.stride(), dtype=made.dtype, device="meta") if is_tensor else None
        found.append(like)

    before = chance()
    generators = [(generator, generator.get_state()) for generator in recording.generators]
    try:
        with torch.no_grad():
            state = [value.tensor.detach().clone() for value in recording.state]
            inputs = [example.detach().clone() for example in examples]
            lowering.Python(recording, [], note=note).run(state, inputs, recording.generators)
            return found
    finally:
        give_chance(before)
        for generator, held in generators:
            generator.set_state(held)
