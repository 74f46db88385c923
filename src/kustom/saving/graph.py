"""Functional models in a config: which layer is called on what, and how long Keras will take to find that out.

Keras goes over the list of layers again and again, calling what can be called, until nothing is left. Of a list in the
order of the calls that is one round; a list in the reverse order takes as many rounds as it has layers, and a file of a
few hundred kilobytes minutes. Models share layers, so that several rounds are no fault; how many attempts Keras will make
is counted here without making any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kustom.errors import LimitError
from kustom.saving import sizes

if TYPE_CHECKING:
    from kustom.saving.judging import Judge

__all__ = ["ATTEMPTS", "FIELDS", "GraphFault", "attempts", "judge", "references"]

# The settings of a functional model that make its graph.
FIELDS = {"name", "layers", "input_layers", "output_layers"}

# At some ten microseconds an attempt, about as long as the layers of such a model take to be made.
ATTEMPTS = 200_000


class GraphFault(ValueError):
    """A graph that cannot be walked."""


def references(value: Any) -> Iterator[tuple[str, int]]:
    """The calls whose results a node takes: the name of a layer, and the number of its call."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                history = value["config"].get("keras_history")
                if history is not None:
                    yield history[0], history[1]
            else:
                waiting += value.values()


def attempts(layers: list[dict[str, Any]], called: frozenset[str]) -> int:
    """How much work it will be for Keras to make all calls, in attempts to make one.

    Args:
        layers: The layers of a functional config, whose nodes are well-formed.
        called: The layers that have been called once when they are made: inputs, and functional models.

    Raises:
        GraphFault: Two layers have one name, a call needs what is not there, or the calls go in a circle.
    """
    place = {layer["name"]: number for number, layer in enumerate(layers)}
    if len(place) != len(layers):
        raise GraphFault("two of its layers have one name")
    counts = {layer["name"]: len(layer["inbound_nodes"]) for layer in layers}
    needs: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for layer in layers:
        name = layer["name"]
        for number, node in enumerate(layer["inbound_nodes"]):
            wanted = [] if not number else [(name, number - 1)]
            for needed, call in references(node):
                if needed not in place:
                    raise GraphFault(f"a call needs the layer {needed!r}, which it does not have")
                earlier = needed in called
                if not 0 <= call < counts[needed] + earlier:
                    raise GraphFault(f"a call needs the call {call} of {needed!r}, which is never made")
                if call >= earlier:
                    wanted.append((needed, call - earlier))
            needs[name, number] = wanted
    rounds = _rounds(needs, place)
    last: dict[str, int] = {}
    for (name, _), number in rounds.items():
        last[name] = max(last.get(name, 0), number)
    # Each round looks at every layer, which costs a fiftieth of an attempt, and tries each that is not yet done.
    return len(needs) + sum(last.values()) + (max(last.values(), default=0) + 1) * len(layers) // 50


def _rounds(needs: dict[tuple[str, int], list[tuple[str, int]]], place: dict[str, int]) -> dict[tuple[str, int], int]:
    """In which round, from 0, each call is made."""
    waiting = {node: len(wanted) for node, wanted in needs.items()}
    users: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for node, wanted in needs.items():
        for each in wanted:
            users.setdefault(each, []).append(node)
    rounds = dict.fromkeys(needs, 0)
    ready = [node for node, count in waiting.items() if not count]
    done = 0
    while ready:
        node = ready.pop()
        done += 1
        for user in users.get(node, ()):
            later = place[user[0]] < place[node[0]]
            rounds[user] = max(rounds[user], rounds[node] + later)
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    if done != len(needs):
        raise GraphFault("its calls go in a circle, or need what is never made")
    return rounds


def judge(walk: Judge, config: dict[str, Any], place: str) -> None:
    """Judge the graph of a functional model: its layers, their calls, its ends."""
    layers = config["layers"]
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        walk.corrupt(place, "the layers of a functional model are no list of layers")
    called = set()
    before, full = len(walk.anomalies), walk.full
    for number, layer in enumerate(layers):
        inside = f"{place}.layers[{number}]"
        _calls(walk, layer, inside)
        inner = layer.get("config")
        if not layer["inbound_nodes"] or (isinstance(inner, dict) and inner.keys() >= FIELDS):
            called.add(layer["name"])
        walk.part(layer, "operation", inside)
    if len(walk.anomalies) > before or full:
        # What is said of its layers and calls is enough.
        return
    try:
        cost = attempts(layers, frozenset(called))
    except GraphFault as fault:
        walk.corrupt(place, f"this is no graph: {fault}")
    if cost > ATTEMPTS:
        walk.unsafe(place, f"its layers stand in an order that takes Keras {cost:,} attempts to put together, minutes or more")
    for key in ("input_layers", "output_layers"):
        _ends(walk, config[key], {layer["name"] for layer in layers}, f"{place}.{key}")


def _calls(walk: Judge, layer: dict[str, Any], place: str) -> None:
    """The calls of one layer."""
    nodes = layer.get("inbound_nodes")
    if not isinstance(layer.get("name"), str) or not isinstance(nodes, list):
        walk.corrupt(place, "a layer of a functional model has no name, or no list of calls")
    for number, node in enumerate(nodes):
        inside = f"{place}.inbound_nodes[{number}]"
        if not isinstance(node, dict) or node.keys() != {"args", "kwargs"} or not isinstance(node["kwargs"], dict):
            walk.corrupt(inside, "a call is not written as Keras 3 writes it")
        for key in ("args", "kwargs"):
            walk.inner(node[key], "node", f"{inside}.{key}")
            walk.looked_up(node[key], f"{inside}.{key}")
    sized = sizes.of_calls(layer, walk.limits)
    if sized is not None:
        walk.anomalies.append(LimitError(sized, file=walk.file, part=walk.at(place)))


def _ends(walk: Judge, value: Any, names: set[str], place: str) -> None:
    """The inputs or outputs of a graph: a layer, its call, its output; or a structure of such."""
    if isinstance(value, dict):
        for key, item in value.items():
            _ends(walk, item, names, f"{place}.{key}")
        return
    if not isinstance(value, list):
        walk.corrupt(place, f"{value!r:.80} stands where an input or output of a model was expected")
    if value and isinstance(value[0], str):
        numbers = value[1:]
        if value[0] not in names or len(numbers) != 2 or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            walk.corrupt(place, f"{value!r:.80} is no input or output of this model")
        return
    for number, item in enumerate(value):
        _ends(walk, item, names, f"{place}[{number}]")
