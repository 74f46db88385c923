"""Functional models in a config: which layer is called on what, and how long Keras will take to find that out.

Keras goes over the list of layers again and again, calling what can be called, until nothing is left. Of a list in the
order of the calls that is one round; a list in the reverse order takes as many rounds as it has layers, and a file of a
few hundred kilobytes minutes. Models share layers, so that several rounds are no fault; how many attempts Keras will make
is counted here without making any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["ATTEMPTS", "GraphFault", "attempts", "references"]

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
