"""Recording on PyTorch: autograd builds its graph anyway, so that the tape adds nothing to an operation.

What a tape adds is said of that graph. A plain tensor that is watched requires a gradient inside the block only; its edge
is kept and works after it. Nodes have a number in the order of their making: those made while the recording was on belong
to it, and at all others a gradient ends. Connection is decided by walking the graph, so that an unconnected source is None.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from kustom.backends import keras as private
from kustom.errors import TapeError

__all__ = [
    "Recording",
    "attached",
    "detached",
    "fresh",
    "is_differentiable",
    "is_differentiated",
    "noticed",
    "pulled",
    "refuse_unsupported",
]

_device = private.backend_module("core").get_device


class _Unused(threading.local):
    """The recordings of a thread whose graph may be asked: those that were on at the same time share it."""

    def __init__(self) -> None:
        self.all: weakref.WeakSet[Recording] = weakref.WeakSet()


_unused = _Unused()


def refuse_unsupported() -> None:
    """Say what to do inside `torch.vmap` and its kin, where autograd cannot be asked.

    Raises:
        TapeError: A transform of `torch.func` is on.
    """
    if torch.is_inference_mode_enabled():
        raise TapeError(
            "kustom.GradientTape does not work under torch.inference_mode(), where nothing is recorded; torch.no_grad() is fine."
        )
    if in_transform():
        raise TapeError(
            "kustom.GradientTape does not work inside torch.vmap or torch.func, where autograd cannot be asked. Use the "
            "functional form there: ops.vectorized_map(kustom.grad(f), x)."
        )


def in_transform() -> bool:
    """Whether a transform of `torch.func`, such as `vmap`, is on."""
    return torch._C._functorch.maybe_current_level() is not None  # type: ignore[attr-defined]


def is_differentiable(x: Any) -> bool:
    """Whether a gradient can flow through a value of this dtype."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


class Recording:
    """What one tape has seen."""

    def __init__(self, *, persistent: bool, accessed: bool) -> None:
        self.persistent = persistent
        self._accessed = accessed
        self._scopes: list[contextlib.ExitStack] = []
        self._overlapping = False
        # Tensors that require a gradient for as long as the recording is on.
        self._borrowed: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._watched: dict[int, Any] = {}
        self._variables: dict[int, tuple[Any, list[Any]]] = {}
        self._asked: list[Any] = []
        # Those that were borrowed, and may be again while the gradient is asked: what is recomputed there looks.
        self._lent: list[Any] = []
        self._edges: dict[int, GradientEdge] = {}
        self._stubs: dict[int, Any] = {}
        # From the first number to, and without, the last; None while it is on.
        self._spans: list[list[Any]] = [[_next_number(), None]] if self._scopes else []
        self._copies: dict[tuple[int, int], Any] = {}

    def start(self) -> None:
        """Record what this thread computes from now on."""
        others = [other for other in _unused.all if other is not self and other._scopes]
        for other in others:
            other._overlapping = self._overlapping = True
        _unused.all.add(self)
        stack = contextlib.ExitStack()
        stack.enter_context(torch.enable_grad())
        if self.persistent or others:
            # An assignment writes into the variable's tensor, and the gradient may be asked after it.
            stack.enter_context(saved_tensors_hooks(self._pack, _unpack))
        if others or private.in_layer_call():
            # What is recorded here will be differentiated once more.
            stack.enter_context(_differentiable_attention)
        self._scopes.append(stack)
        self._spans.append([_next_number(), None])

    def stop(self) -> None:
        """Record nothing more."""
        self._spans[-1][1] = _next_number()
        self._scopes.pop().close()
        for tensor in self._asked:
            # An edge works when its tensor requires no gradient any more, too.
            self._edges[id(tensor)] = get_gradient_edge(tensor)
        for tensor in self._borrowed:
            _give_back(tensor)
        self._lent += self._borrowed
        self._borrowed = []

    def release(self) -> None:
        """The one gradient has been given."""
        _unused.all.discard(self)
        self.reset()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside; what other recordings see is theirs."""
        self._spans[-1][1] = _next_number()
        try:
            yield
        finally:
            self._spans.append([_next_number(), None])

    def _pack(self, x: Any) -> Any:
        if not (x.is_leaf and x.requires_grad):
            return x
        key = (id(x), x._version)
        if key not in self._copies:
            self._copies[key] = x.detach().clone()
        return self._copies[key]

    def watch(self, x: Any) -> None:
        """Watch a tensor."""
        if not is_differentiable(x) or id(x) in self._watched:
            return
        if x.is_inference():
            raise TapeError(
                "a tensor made under torch.inference_mode() was watched, which torch cannot differentiate by; clone it."
            )
        if _borrow(x):
            self._borrowed.append(x)
        self._watched[id(x)] = x
        self._asked.append(x)

    def pass_by(self, value: Any) -> Any:
        """What the reader of a variable gets that is not watched."""
        return value

    def watched(self) -> list[Any]:
        """The variables that are watched, in the order in which they were read."""
        return [variable for variable, _ in self._variables.values()]

    def read(self, variable: Any, value: Any) -> Any:
        """Watch a variable whose `value`, before any cast, is being read; returns what the reader gets."""
        entry = self._variables.get(id(variable))
        if entry is not None and entry[1][-1] is value:
            return value
        if entry is None and value.requires_grad and _device() != "meta":
            # What is read most, at least cost.
            self._variables[id(variable)] = (variable, [value])
            self._watched[id(value)] = value
            return value
        if _device() == "meta" and value.device.type != "meta":
            # Keras infers shapes with a new stand-in for each read; one that is read twice must be the same.
            if id(variable) not in self._stubs:
                self._stubs[id(variable)] = torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
            value = self._stubs[id(variable)]
        if is_differentiable(value):
            self.watch(value)
            _, values = self._variables.setdefault(id(variable), (variable, []))
            if not any(value is other for other in values):
                values.append(value)
        return value

    def gradient(self, targets: list[Any], sources: list[Any], seeds: list[Any], *, recorded: bool) -> list[Any]:
        """The gradient of the sum of `targets`, each weighed by its seed, for each source; None where there is no way.

        Args:
            targets: Tensors.
            sources: Tensors and variables.
            seeds: For each target a tensor, or None for ones.
            recorded: The gradient is to be differentiable itself.
        """
        return self._gradient(targets, sources, seeds, recorded, batched=False)

    def _gradient(self, targets: Any, sources: Any, seeds: Any, recorded: bool, *, batched: bool) -> list[Any]:
        # Whether the gradient will itself be differentiated, by `loss.backward()`, nobody can know here. One by inputs may
        # well be, and the cost is little; one by variables is a training step's, and it would cost as much again.
        by_inputs = not any(isinstance(source, keras.Variable) for source in sources)
        groups = [self._values_of(source) for source in sources]
        starts = []
        for target, seed in zip(targets, seeds, strict=True):
            if target.grad_fn is not None or target is self._watched.get(id(target)):
                starts.append((self._edge(target), torch.ones_like(target) if seed is None else seed))
        if by_inputs and not recorded and torch.is_grad_enabled():
            recorded = self._is_of_what_learns([edge.node for edge, _ in starts])
        inputs = [value for group in groups for value in group]
        older: list[Any] = []
        if not self._is_whole([edge.node for edge, _ in starts]):
            # Odd, and slow: something was made outside, and a gradient ends there.
            edges = [self._edge(value) for value in inputs]
            wanted = {_key(edge) for edge in edges}
            starts = [(edge, seed) for edge, seed in starts if _key(edge) in wanted or self._has(edge.node)]
            reached, older = self._walk([_key(edge) for edge, _ in starts], wanted)
            unreached = {id(value) for value, edge in zip(inputs, edges, strict=True) if _key(edge) not in reached}
            groups = [[value for value in group if id(value) not in unreached] for group in groups]
            inputs = [value for group in groups for value in group]
        gradients: Any = ()
        if inputs and starts:
            hooks = [node.register_prehook(_nothing) for node in older]
            lent = [tensor for tensor in self._lent if _borrow(tensor)]
            try:
                by: Any = [self._edges.get(id(value), value) for value in inputs]
                gradients = torch.autograd.grad(
                    [edge for edge, _ in starts],
                    by,
                    [seed for _, seed in starts],
                    retain_graph=self.persistent or recorded or bool(older) or self._is_shared(),
                    create_graph=recorded,
                    allow_unused=True,
                    is_grads_batched=batched,
                )
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                raise TapeError(
                    "a variable that was read inside the block was assigned to before the gradient was asked, or a tensor was "
                    "written in place, and torch keeps one value of it. Ask before, or have the tape keep the values: "
                    "kustom.GradientTape(persistent=True)."
                ) from error
            finally:
                for hook in hooks:
                    hook.remove()
                for tensor in lent:
                    _give_back(tensor)
        found = iter(gradients)
        result = []
        for group in groups:
            parts = [part for part in (next(found, None) for _ in group) if part is not None]
            result.append(_plain(sum(parts[1:], parts[0])) if parts else None)
        return result

    def _is_shared(self) -> bool:
        return self._overlapping and any(other is not self for other in _unused.all)

    def _values_of(self, source: Any) -> list[Any]:
        entry = self._variables.get(id(source))
        if entry is not None:
            return entry[1]
        if isinstance(source, keras.Variable):
            # A module of torch reads its parameters where only torch sees it.
            value = private.stored(source)
            seen = self._accessed and source.trainable and is_differentiable(value) and value.is_leaf and value.requires_grad
            return [value] if seen else []
        if source is self._watched.get(id(source)):
            return [source]
        if source.grad_fn is None:
            return []
        # A result counts where it descends from what is watched; torch has a graph of all else that learns, too.
        edge = get_gradient_edge(source)
        watched = {_key(self._edge(each)) for each in self._watched.values()}
        reached, _ = self._walk([_key(edge)], watched) if self._has(edge.node) else (set(), [])
        return [source] if reached & watched else []

    def _edge(self, tensor: Any) -> GradientEdge:
        return self._edges.get(id(tensor)) or get_gradient_edge(tensor)

    def _has(self, node: Any) -> bool:
        """Whether a node was made while this recording was on. Leaves were not made, and have no number.

        Nor has what stands for a derivative that torch has not; it is of the recording that what leads to it is of, so that
        torch says so, instead of a gradient that ends there without a word.
        """
        number = node._sequence_nr()
        if number > 2**62:
            children = [child for child, _ in node.next_functions if child is not None]
            return not children or any(self._has(child) for child in children)
        return any(first <= number and (last is None or number < last) for first, last in self._spans)

    def _is_whole(self, start: list[Any]) -> bool:
        """Whether everything that the nodes `start` lead to was made while this recording was on.

        Then torch itself knows what is connected. It is so in all but odd cases, and a walk that asks for no more is quick.
        """
        if len(self._spans) > 1:
            return False
        first, last = self._spans[0]
        last = math.inf if last is None else last
        if not all(first <= node._sequence_nr() < last or not node.next_functions for node in start):
            return False
        seen, todo = set(start), list(start)
        while todo:
            for child, _ in todo.pop().next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    if first <= child._sequence_nr() < last:
                        todo.append(child)
                    elif child.next_functions:
                        return False
        return True

    def _is_of_what_learns(self, start: list[Any]) -> bool:
        """Whether anything that the nodes `start` lead to goes on requiring a gradient after the recording."""
        borrowed = {id(tensor) for tensor in self._borrowed}
        seen, todo = set(start), list(start)
        while todo:
            node = todo.pop()
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf.requires_grad and id(leaf) not in borrowed:
                return True
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    todo.append(child)
        return False

    def _walk(self, start: list[Any], wanted: set[Any]) -> tuple[set[Any], list[Any]]:
        """The edges that `start` leads to inside this recording, and the nodes where it ends."""
        reached, outside, seen, todo = set(start), [], set(), list(start)
        while todo:
            node = todo.pop()[0]
            if node in seen:
                continue
            seen.add(node)
            for edge in node.next_functions:
                child = edge[0]
                if child is None or edge in reached:
                    continue
                if not self._has(child):
                    outside.append(child)
                    if edge in wanted:
                        reached.add(edge)
                    continue
                reached.add(edge)
                todo.append(edge)
        return reached, outside

    def jacobian(self, target: Any, sources: list[Any], *, recorded: bool) -> list[Any]:
        """For each source the derivatives of each entry of `target`: shape `(target.size, *source.shape)`, or None."""
        basis = torch.eye(target.numel(), dtype=target.dtype, device=target.device)
        return self._rows(target, sources, basis.reshape(-1, *target.shape), recorded)

    def batch_jacobian(self, target: Any, source: Any, *, recorded: bool) -> Any:
        """The derivatives of each sample's entries by the same sample's: shape `(batch, entries, *source.shape[1:])`, or None."""
        entries = math.prod(target.shape[1:])
        basis = torch.eye(entries, dtype=target.dtype, device=target.device).reshape(entries, 1, *target.shape[1:])
        [rows] = self._rows(target, [source], basis.expand(entries, *target.shape), recorded)
        return None if rows is None else rows.movedim(0, 1)

    def _rows(self, target: Any, sources: list[Any], seeds: Any, recorded: bool) -> list[Any]:
        if not len(seeds):
            return [seeds.new_zeros((0, *value.shape)) for value in sources]
        persistent, self.persistent = self.persistent, True
        try:
            return self._gradient([target], sources, [seeds], recorded, batched=True)
        except RuntimeError as error:
            # Not every operation can be batched.
            if "vmap" not in str(error) and "batching rule" not in str(error):
                raise
            rows = [self._gradient([target], sources, [seed], recorded, batched=False) for seed in seeds]
            return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
        finally:
            self.persistent = persistent


def _key(edge: GradientEdge) -> tuple[Any, int]:
    return (edge.node, edge.output_nr)


_lock = threading.Lock()
_borrowers: dict[int, list[Any]] = {}


def _borrow(x: Any) -> bool:
    """Have a tensor require a gradient until every borrower, in whatever thread, has given it back."""
    with _lock:
        if id(x) in _borrowers:
            _borrowers[id(x)][1] += 1
            return True
        if x.requires_grad:
            return False
        x.requires_grad_(True)
        _borrowers[id(x)] = [x, 1]
        return True


def _give_back(x: Any) -> None:
    with _lock:
        _borrowers[id(x)][1] -= 1
        if not _borrowers[id(x)][1]:
            del _borrowers[id(x)]
            x.requires_grad_(False)


def _next_number() -> int:
    """The number that the next node made by this thread gets."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]


def _unpack(x: Any) -> Any:
    return x


def _nothing(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)


def _plain(gradient: Any) -> Any:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


class _Transformed:
    """What a function has computed inside `torch.vmap` or its kin, where autograd cannot be asked, and its gradients."""

    def __init__(self, targets: list[Any], aux: Any, pull: Callable[..., Any]) -> None:
        self.targets = targets
        self.aux = aux
        self._pull = pull

    def gradient(self, seeds: list[Any]) -> list[Any]:
        """The gradient of the sum of the targets, each weighed by its seed, by each input and then by each variable."""
        pairs = [(t, s) for t, s in zip(self.targets, seeds, strict=True) if is_differentiable(t)]
        return list(self._pull([torch.ones_like(t) if s is None else s for t, s in pairs]))

    def jacobian(self, index: int) -> list[Any]:
        """The derivatives of each entry of one target: shapes `(target.size, *source.shape)`."""
        target = self.targets[index]
        basis = torch.eye(target.numel(), dtype=target.dtype, device=target.device).reshape(-1, *target.shape)
        others = [torch.zeros_like(t) for t in self.targets]

        def row(seed: Any) -> Any:
            return tuple(self.gradient([*others[:index], seed, *others[index + 1 :]]))

        return list(torch.vmap(row)(basis))


def fresh(x: Any) -> Any:
    """The same value as another tensor, with the gradient of `x`: one that is given twice is then two."""
    with torch.enable_grad():
        return x.view_as(x) if x.requires_grad else x.detach()


def pulled(f: Callable[..., Any], inputs: list[Any], variables: list[keras.Variable]) -> _Transformed | None:
    """Inside `torch.vmap` and its kin: call `f(inputs)`, which returns targets and something else, to be differentiated.

    What it assigns to variables there is of one sample, and is dropped. Elsewhere nothing: the tape serves.
    """
    return _transformed(f, inputs, variables) if in_transform() else None


class _Scope(keras.StatelessScope):
    """The state of a function that is being differentiated, in the place of the variables."""


def _transformed(f: Callable[..., Any], inputs: list[Any], variables: list[keras.Variable]) -> _Transformed:
    """By `torch.func`, with the variables' values as further arguments."""
    kept: list[Any] = []

    def pure(*values: Any) -> Any:
        state = list(zip(variables, values[len(inputs) :], strict=True))
        with _Scope(state, collect_losses=True):
            targets, aux = f(list(values[: len(inputs)]))
        kept[:] = [aux]
        tensors = tuple(x for x in keras.tree.flatten(aux) if isinstance(x, torch.Tensor))
        return tuple(t for t in targets if is_differentiable(t)), (tuple(targets), tensors)

    values = [*inputs, *(private.stored(variable) for variable in variables)]
    made: Any = torch.func.vjp(pure, *values, has_aux=True)
    _, pull, (targets, tensors) = made
    found = iter(tensors)
    aux = keras.tree.map_structure(lambda x: next(found) if isinstance(x, torch.Tensor) else x, kept[0])
    return _Transformed(list(targets), aux, lambda seeds: pull(tuple(seeds)))


class _Attach(torch.autograd.Function):
    """Hands values on, and gives the inputs beside them the gradients that a function makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(pullback: Any, many: int, *values: Any) -> Any:
        return tuple(value.view_as(value) for value in values[:many])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.pullback, ctx.many = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return (None, None, *[None] * ctx.many, *ctx.pullback(list(upstream)))


def attached(outputs: list[Any], inputs: list[Any], pullback: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """`outputs` whose gradient by `inputs` is what `pullback` makes of their gradients, and by nothing else."""
    return list(_Attach.apply(pullback, len(outputs), *(y.detach() for y in outputs), *inputs))  # type: ignore[misc]


def noticed(x: Any, note: Callable[[], None]) -> Any:
    """`x`, which calls `note` where it is differentiated; numbers and derivatives stay as they are."""
    if x.requires_grad:
        x.register_hook(lambda gradient: note())
    return x


def is_differentiated() -> bool:
    """Whether anything may be differentiated here."""
    return torch.is_grad_enabled()


def detached(x: Any) -> Any:
    """The value of `x` without the graph that computed it, which torch keeps."""
    return x.detach()


def _attention(plain: Callable[..., Any]) -> Callable[..., Any]:
    def attention(*args: Any, **kwargs: Any) -> Any:
        if not _differentiable_attention.here:
            return plain(*args, **kwargs)
        with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
            return plain(*args, **{**kwargs, "flash_attention": False})

    return attention


# Keras's attention, which in a thread that has this open can be differentiated twice: torch's fused kernels cannot.
_differentiable_attention = private.Exchange(private.backend_module("nn"), "dot_product_attention", _attention)
