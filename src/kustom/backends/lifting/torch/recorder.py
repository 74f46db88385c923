"""What a function of tensors does on torch, written down operation by operation, below autograd.

The function runs once, as it is, on real values: its forward pass, its gradients and its optimizer are operations like any
others, and what it reads that it has not made itself is state, by reference. So whatever holds in eager Keras holds here:
a variable is its Parameter, assigned in place, with its `.grad`; nothing has to be lifted. When the run is over, what it
wrote is put back. A value asked of a tensor would be frozen, and is refused.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kustom.backends import keras as private
from kustom.backends.lifting.state import BranchOnValue
from kustom.backends.lifting.torch import branches
from kustom.backends.lifting.torch.recording import Call, Node, Recording, Storage, Value

__all__ = ["chance", "give_chance", "record"]

_core = private.backend_module("core")
_aten = torch.ops.aten
_READ = _aten._local_scalar_dense.default
_INDEX = _aten.index.Tensor
_SETS_GRAD = torch.Tensor.grad.__set__  # type: ignore[attr-defined]
_SETS_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_STORAGE_COUNT = torch._C._storage_Use_Count
# Bytes that may be held without need: to look takes as long as some operations.
_UNSEEN = 1 << 22
_LEAVES = (torch.Tensor.__array__, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__dlpack__)


def record(f: Callable[[list[Any]], list[Any]], examples: Sequence[Any]) -> Recording:
    """Run `f` on copies of the examples and write down what it does. Nothing has changed after it but what it has made.

    Raises:
        BranchOnValue: It asks for the value of a tensor.
    """
    run = _Run()
    recording = run.recording
    inputs = [example.detach().clone() for example in examples]
    recording.inputs = [run.add(x, "input", varying=True) for x in inputs]
    with contextlib.ExitStack() as stack:
        stack.callback(give_chance, chance())
        stack.callback(run.undo)
        run.made = stack.enter_context(private.makes())
        stack.enter_context(private.builds_at_once(run.building))
        private.listen(run.read)
        stack.callback(private.unlisten, run.read)
        stack.enter_context(branches.exchanged(run))
        try:
            with _Functions(run), run:
                outputs = [each.value if isinstance(each, keras.Variable) else each for each in f(inputs)]
                recording.outputs = [run.value_of(x) for x in outputs]
        except Exception:
            # Keras may have put its own in the place of the refusal.
            if run.refusal is not None:
                raise run.refusal from None
            raise
        if run.refusal is not None:
            raise run.refusal
        run.note_gradients()
        run.refuse_abandoned(f)
        # Now: the state of Keras's own seed is one of them, too.
        recording.made = list(run.made)
    for value in run.values.values():
        run.describe(value)
        is_fixed = value.kind == "made" and not value.storage.varying and not value.storage.writes
        value.kept = value.tensor if is_fixed else None
        if value.kind in ("made", "input"):
            value.tensor = None
    return recording


def chance() -> Any:
    """The state of torch's own generators."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def give_chance(state: Any) -> None:
    """Put `chance()` of before back."""
    host, devices = state
    torch.set_rng_state(host)
    if devices:
        torch.cuda.set_rng_state_all(devices)


class _Functions(TorchFunctionMode):
    """Sees what never becomes an operation: a tensor that leaves torch, a gradient that is set, a tensor as a number."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LEAVES:
            self._run.refuse_value(args[0])
        elif func == _SETS_GRAD:
            self._run.note_gradient(args[0], is_set=True)
        elif func == _SETS_DATA:
            self._run.refuse("another tensor in the place of one (`.data = ...`)")
        elif isinstance(kwargs.get("alpha"), torch.Tensor):
            # torch reads the number: SGD and Adadelta give it their learning rate so.
            with self._run.reading(kwargs["alpha"]) as number:
                return func(*args, **{**kwargs, "alpha": number})
        elif func is torch.nn.functional.one_hot and _core.get_device() != "meta":
            return _one_hot(*args, **kwargs)
        return func(*args, **kwargs)


def _one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """What torch's own gives, which asks for the largest value first: here one that is too large fails where it is put."""
    if num_classes < 0:
        return torch.nn.functional.one_hot(tensor)
    zeros = torch.zeros((*tensor.shape, num_classes), dtype=torch.int64, device=tensor.device)
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


class _Run(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self.values: dict[int, Value] = {}
        self.made: list[keras.Variable] = []
        self.refusal: BranchOnValue | None = None
        # How often a generator whose state goes on was drawn from.
        self.draws = 0
        self._storages: dict[int, Storage] = {}
        # Bytes of what was made since it was last looked what is still needed, and how many may be.
        self._unseen, self._most_unseen = 0, _UNSEEN
        # What to write back when the run is over: storages, by their address, with what they held.
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._seeds: dict[int, tuple[Any, Value]] = {}
        self._generators: list[tuple[Any, Any]] = []
        self._number: Value | None = None
        # Of each leaf of the state: itself, its gradient before, and whether that was replaced before it was used.
        self._gradients: dict[int, list[Any]] = {}
        self._depth = _depth()

    def read(self, variable: keras.Variable, value: Any) -> Any:
        """Note that a variable is read, or is being assigned."""
        # In a branch it is read as a copy.
        own = private.own_value(variable)
        if own is not None:
            self.recording.variables[id(own)] = variable
        self.note_gradient(value)
        return value

    def add(self, tensor: Any, kind: str, *, varying: bool) -> Value:
        """A new value."""
        if tensor.layout != torch.strided:
            self.refuse(f"a tensor of layout {tensor.layout}")
        key = tensor.untyped_storage()._cdata
        storage = self._storages.get(key)
        if storage is None:
            storage = self._storages[key] = Storage(state=kind == "state", varying=varying)
        storage.tensors += 1
        value = self.values[id(tensor)] = Value(kind, tensor, storage)
        return value

    def describe(self, value: Value) -> None:
        """Note what there is to know of a tensor without its numbers."""
        tensor = value.tensor
        value.like = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        self.recording.on_host = self.recording.on_host and tensor.device.type in ("cpu", "meta")

    def _let_go(self) -> None:
        """Let go of what only this run still holds, so that it needs no more memory than the function does without it."""
        live = 0
        for key, value in list(self.values.items()):
            if value.kind != "made" or value.tensor is None:
                continue
            memory = value.tensor.untyped_storage()
            # The value's own, and the question's. Nobody else, Python or autograd, has the tensor, and of its memory there are
            # no tensors but the run's: neither can come back, and what comes to have their addresses is another.
            alone = sys.getrefcount(value.tensor) <= 2 and value.tensor._use_count() == 1
            if alone and value.storage.varying and _STORAGE_COUNT(memory._cdata) == value.storage.tensors + 1:
                self.describe(value)
                value.tensor = None
                del self.values[key]
                value.storage.tensors -= 1
                if not value.storage.tensors:
                    del self._storages[memory._cdata]
            else:
                live += memory.nbytes()
        self._unseen, self._most_unseen = 0, max(_UNSEEN, live // 8)

    def value_of(self, tensor: Any) -> Value:
        """The value of a tensor; one that was not made in the run is state."""
        value = self.values.get(id(tensor))
        if value is None:
            value = self.add(tensor, "state", varying=True)
            self.recording.state.append(value)
            self.note_gradient(tensor)
        return value

    def is_varying(self, tensor: Any) -> bool:
        """Whether a tensor may be another at the next step."""
        return not tensor.is_meta and self.value_of(tensor).storage.varying

    def refuse_value(self, tensor: Any) -> None:
        """Refuse to give the value of a tensor to Python, unless it is always the same."""
        if isinstance(tensor, torch.Tensor) and self.is_varying(tensor):
            self.refuse()

    def refuse(self, what: str = "the value of a tensor") -> None:
        """Say that no program can be made of this function."""
        refusal = BranchOnValue(_users_line(self._depth), what)
        if _in_repr():
            # Of a variable, for a message: Keras goes on without the value, and so does the function.
            raise refusal
        self.refusal = self.refusal or refusal
        raise self.refusal

    @contextlib.contextmanager
    def reading(self, tensor: Any) -> Iterator[float]:
        """The number that a tensor holds, which inside is known to be read from it."""
        if not self.is_varying(tensor):
            yield tensor.item()
            return
        node = Node(_READ, (self.value_of(tensor),), {})
        number = Value("made", None, Storage(state=False, varying=True))
        node.outputs = [number]
        self.recording.nodes.append(node)
        with _disable_current_modes():
            found = tensor.item()
        before, self._number = self._number, number
        try:
            yield found
        finally:
            self._number = before

    def seeded(self, seed: Any) -> Any:
        """A generator with this seed, a tensor; each step it will be seeded anew."""
        value = self.value_of(seed)
        with _disable_current_modes():
            generator: Any = torch.Generator(seed.device)
            generator.manual_seed(int(seed) & 0xFFFFFFFF)
        # Operations are handed another Python object of it.
        self._seeds[generator._cdata] = (generator, value)
        return generator

    def call(self, f: Callable[[list[Any]], list[Any]], tensors: list[Any]) -> list[Any]:
        """Call a Python function of tensors, now and each step; it neither writes to them nor is differentiated."""
        node = Node(Call(f), ([self.value_of(x) for x in tensors],), {})
        varying = any(self.is_varying(x) for x in tensors)
        with _disable_current_modes(), torch.no_grad():
            found = f([x.detach() for x in tensors])
        node.outputs = [self.add(x, "made", varying=varying) for x in found]
        node.single = False
        self.recording.nodes.append(node)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _core.get_device() == "meta":
            # Keras infers shapes, or builds what is not built: nothing of it is part of a step.
            return func(*args, **kwargs)
        if func is _aten.lift_fresh.default and id(args[0]) not in self.values:
            # Made of numbers or an array just now; it may be written into.
            self._note_constant(args[0])
            return args[0]
        node = Node(func, self._symbolic(args), {name: self._symbolic(value) for name, value in kwargs.items()})
        varying = any(value.storage.varying for value in node.values())
        if varying:
            self._refuse_dynamic(func, args)
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata in self._seeds:
            node.seed = self._seeds[generator._cdata][1]
            varying = varying or node.seed.storage.varying
        elif torch.Tag.nondeterministic_seeded in func.tags and not _is_dry(func, args):
            node.random = varying = True
            self.draws += 1
            if generator is not None:
                self._keep_generator(generator)
        if self._number is not None and "alpha" in kwargs:
            node.kwargs["alpha"] = self._number
        if func._schema.is_mutable:
            self._note_writes(node, args, kwargs, varying)
        out = func(*args, **kwargs)
        self._note_outputs(node, out, varying)
        return out

    def _symbolic(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return self.value_of(argument)
        if isinstance(argument, list | tuple):
            return [self._symbolic(each) for each in argument]
        return argument

    def _refuse_dynamic(self, func: Any, args: Any) -> None:
        if func is _READ or torch.Tag.data_dependent_output in func.tags:
            self.refuse()
        if torch.Tag.dynamic_output_shape in func.tags:
            masks = func is not _INDEX or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
            if masks:
                self.refuse("a tensor whose shape depends on values")
        if func.name().startswith("aten::set_"):
            self.refuse("another tensor in the place of one")

    def _note_constant(self, tensor: Any) -> None:
        with _disable_current_modes():
            value = self.add(tensor.detach().clone(), "constant", varying=False)
        node = Node(_aten.clone.default, (value,), {})
        node.outputs = [self.add(tensor, "made", varying=False)]
        self.recording.nodes.append(node)

    def _note_writes(self, node: Node, args: Any, kwargs: Any, varying: bool) -> None:
        position = len(self.recording.nodes)
        for place, spec in enumerate(node.func._schema.arguments):
            if spec.alias_info is None or not spec.alias_info.is_write:
                continue
            actual = args[place] if place < len(args) else kwargs.get(spec.name)
            for tensor in actual if isinstance(actual, list | tuple) else [actual]:
                if not isinstance(tensor, torch.Tensor):
                    continue
                value = self.value_of(tensor)
                self._keep(tensor, value.storage)
                value.storage.writes.append(position)
                value.storage.varying = value.storage.varying or varying
                node.written.append(value)

    def _note_outputs(self, node: Node, out: Any, varying: bool) -> None:
        node.single = isinstance(out, torch.Tensor)
        for tensor in [out] if not isinstance(out, list | tuple) else out:
            if not isinstance(tensor, torch.Tensor) or id(tensor) in self.values:
                node.outputs.append(None)
            else:
                node.outputs.append(self.add(tensor, "made", varying=varying))
                self._unseen += tensor.untyped_storage().nbytes()
        self.recording.nodes.append(node)
        if self._unseen > self._most_unseen:
            with _disable_current_modes():
                self._let_go()

    def _keep(self, tensor: Any, storage: Storage) -> None:
        """Keep what is about to be written over, where it outlives the run."""
        memory = tensor.untyped_storage()
        if memory._cdata in self._kept or tensor.is_meta:
            return
        if storage.state or any(_is_in(variable, memory._cdata) for variable in self.made):
            with _disable_current_modes():
                self._kept[memory._cdata] = (memory, memory.clone())

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """What `build` assigns to what it makes is there for good."""
        before = len(self.made)
        yield
        for variable in self.made[before:]:
            value = private.own_value(variable)
            if value is not None:
                self._kept.pop(value.untyped_storage()._cdata, None)

    def _keep_generator(self, generator: Any) -> None:
        if not any(generator._cdata == other._cdata for other, _ in self._generators):
            self._generators.append((generator, generator.get_state()))
            self.recording.generators.append(generator)

    def note_gradient(self, tensor: Any, *, is_set: bool = False) -> None:
        """Remember what gradient a leaf had when it was first met."""
        if not tensor.is_leaf or not tensor.requires_grad:
            return
        entry = self._gradients.get(id(tensor))
        if entry is None:
            if id(tensor) not in self.values or self.values[id(tensor)].kind == "state":
                self._gradients[id(tensor)] = [tensor, tensor.grad, is_set]
        elif is_set and tensor.grad is entry[1] and id(tensor.grad) not in self.values:
            entry[2] = True

    def note_gradients(self) -> None:
        """Write down which gradients the run has left, and give the leaves those of before."""
        for leaf, before, was_set in self._gradients.values():
            after = leaf.grad
            accumulated = before is not None and not was_set and id(before) in self.values
            if after is not before or accumulated:
                value = None if after is None else self.value_of(after)
                self.recording.gradients.append((leaf, before, value, not was_set))

    def refuse_abandoned(self, f: Any) -> None:
        """Refuse state that nobody holds any more: it was replaced (`self.previous = x`), and the next step reads another."""
        held = {id(before) for _, before, _ in self._gradients.values()} | self.recording.variables.keys()
        for value in self.recording.state:
            # One for the value, one for the question.
            if id(value.tensor) not in held and sys.getrefcount(value.tensor) <= 2 and not value.tensor.requires_grad:
                code = getattr(f, "__code__", None)
                line = f"{code.co_filename}:{code.co_firstlineno}" if code else "the function"
                raise BranchOnValue(line, "a tensor that Python keeps from one step to the next")

    def undo(self) -> None:
        """Give everything that outlives the run what it had before."""
        for memory, held in self._kept.values():
            memory.copy_(held)
        for generator, state in self._generators:
            generator.set_state(state)
        for leaf, before, _ in self._gradients.values():
            leaf.grad = before


def _is_in(variable: keras.Variable, address: int) -> bool:
    value = private.own_value(variable)
    return value is not None and value.untyped_storage()._cdata == address


def _is_dry(func: Any, args: Any) -> bool:
    """Whether an operation that may draw does not: dropout by nothing in attention, for one."""
    if func.name().startswith("aten::_scaled_dot_product"):
        at = next((i for i, spec in enumerate(func._schema.arguments) if spec.name == "dropout_p"), None)
        return at is not None and (at >= len(args) or args[at] == 0.0)
    return False


def _in_repr() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "__repr__" and private.is_library(frame.f_globals.get("__name__")):
            return True
        frame = frame.f_back
    return False


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _users_line(floor: int) -> str:
    """Where the user's code is now, as `file:line`: the innermost frame that is neither ours nor a library's."""
    frame: Any = sys._getframe(1)
    above = _depth() - 1 - floor
    while frame is not None and above > 0:
        if not private.is_library(frame.f_globals.get("__name__")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame, above = frame.f_back, above - 1
    return "code of a library"
