"""The pullbacks of JAX's operations: what runs an operation under `jax.vjp`, and what is known of the result.

Eagerly both halves are compiled, once a primitive, its parameters, the shapes, and which arguments are watched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

__all__ = ["Call", "linearize", "linked"]


class Call:
    """An operation that is to be run: `bind` runs it; `key` says, where it can be said, what it is."""

    __slots__ = ("bind", "key")

    def __init__(self, bind: Callable[..., Any], key: Any = None) -> None:
        self.bind = bind
        self.key = key


def linearize(call: Call, args: tuple[Any, ...], live: tuple[int, ...], eager: bool) -> tuple[Any, Callable[..., Any], Any]:
    """Run a call; return its result, its pullback, and which of its results depend on the live arguments."""
    try:
        if eager and call.key is not None:
            try:
                forward = _forward(*call.key, live)
            except TypeError:
                # A parameter that cannot be hashed.
                pass
            else:
                out, residuals, half = forward(*args)
                outs = list(out) if isinstance(out, list | tuple) else [out]
                leaves = [(args, outs, residuals)[where][index] for where, index in half.sources]
                return out, functools.partial(half.pull, leaves), half.links
        out, pull = _vjp(call.bind, args, live)
    except Exception as error:
        # What can be run, but not differentiated, is an error where a gradient through it is asked for.
        out = call.bind(*args)
        outs = out if isinstance(out, list | tuple) else [out]
        return out, functools.partial(_refuse, error), [set(range(len(live))) for _ in outs]
    many = isinstance(out, list | tuple)
    return out, functools.partial(_pull, pull, many), linked(pull)


def _refuse(error: Exception, cotangents: Any, wants: Any, avals: Any) -> Any:
    raise error


def _vjp(bind: Callable[..., Any], args: tuple[Any, ...], live: tuple[int, ...]) -> tuple[Any, Any]:
    def of_live(*values: Any) -> Any:
        every = list(args)
        for i, value in zip(live, values, strict=True):
            every[i] = value
        return bind(*every)

    return jax.vjp(of_live, *(args[i] for i in live))


def linked(pull: Any) -> list[set[int]]:
    """For each result the positions of the arguments that matter for it: none through `stop_gradient`, for one."""
    found = iter(_dependencies(pull.jaxpr))
    return [set() if known else next(found) for known in pull.fun.args[1]]


def _dependencies(jaxpr: Any) -> list[set[int]]:
    """For each result of a program the positions of the arguments that it is computed from."""
    sources: dict[int, set[int]] = {id(variable): {i} for i, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        by = [sources.get(id(atom), set()) for atom in equation.invars]
        inner = equation.params.get("jaxpr") if equation.primitive.name == "jit" else None
        if inner is not None:
            for variable, positions in zip(equation.outvars, _dependencies(inner.jaxpr), strict=True):
                sources[id(variable)] = set().union(*(by[i] for i in positions))
        else:
            active = getattr(getattr(equation.params.get("bwd"), "f", None), "kustom_active", None)
            if active is not None:
                places = [place for place, zero in enumerate(equation.params["in_zeros"]) if not zero]
                by = [each for each, place in zip(by[equation.params["num_res"] :], places, strict=True) if place < active]
            every = set().union(*by)
            for variable in equation.outvars:
                sources[id(variable)] = every
    return [sources.get(id(atom), set()) for atom in jaxpr.outvars]


def _pull(pull: Any, many: bool, cotangents: list[Any], wants: tuple[bool, ...], avals: list[Any]) -> list[Any]:
    """Call JAX's pullback, with symbolic zeros for the results that have no gradient."""
    zeros = [aval.to_ct_aval() for aval in avals]
    filled = [ad.Zero(zero) if ct is None else ct for ct, zero in zip(cotangents, zeros, strict=True)]
    try:
        found = pull(filled if many else filled[0])
    except ValueError as error:
        if "Expected cotangent type" not in str(error):
            raise
        # JAX 0.10 mistakes a symbolic zero for those results of a scan that are its carries, stacked.
        filled = [jnp.zeros(zero.shape, zero.dtype) if ct is None else ct for ct, zero in zip(cotangents, zeros, strict=True)]
        found = pull(filled if many else filled[0])
    return [gradient if want else None for gradient, want in zip(found, wants, strict=True)]


@functools.lru_cache(2048)
def _forward(primitive: Any, params: tuple[tuple[str, Any], ...], live: tuple[int, ...]) -> Callable[..., Any]:
    """The compiled first half of an operation's `vjp`."""
    named = dict(params)

    def forward(*args: Any) -> Any:
        out, pull = _vjp(lambda *a: primitive.bind(*a, **named), args, live)
        outs = list(out) if isinstance(out, list | tuple) else [out]
        leaves, tree = jax.tree.flatten(pull)
        places = {**{id(o): (1, i) for i, o in enumerate(outs)}, **{id(a): (0, i) for i, a in enumerate(args)}}
        residuals: list[Any] = []
        sources = []
        for leaf in leaves:
            if id(leaf) not in places:
                places[id(leaf)] = (2, len(residuals))
                residuals.append(leaf)
            sources.append(places[id(leaf)])
        return out, residuals, _Half(tree, sources, linked(pull), isinstance(out, list | tuple))

    return jax.jit(forward)


class _Half:
    """The other half: how residuals become the pullback. Static to JAX, one object a compiled first half."""

    def __init__(self, tree: Any, sources: list[tuple[int, int]], links: list[set[int]], many: bool) -> None:
        self.tree = tree
        self.sources = sources
        self.links = links
        self._many = many
        self._compiled: dict[Any, Any] = {}

    def pull(self, leaves: list[Any], cotangents: list[Any], wants: tuple[bool, ...], avals: list[Any]) -> list[Any]:
        given = tuple(ct is not None for ct in cotangents)
        if (given, wants) not in self._compiled:

            def backward(leaves: list[Any], some: list[Any]) -> Any:
                rest = iter(some)
                every = [next(rest) if each else None for each in given]
                return _pull(jax.tree.unflatten(self.tree, leaves), self._many, every, wants, avals)

            # What is not wanted is not computed.
            self._compiled[given, wants] = jax.jit(backward)
        return self._compiled[given, wants](leaves, [ct for ct in cotangents if ct is not None])


jax.tree_util.register_pytree_node(_Half, lambda half: ((), half), lambda half, _: half)
