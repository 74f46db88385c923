"""The walk over a config, with a slot for each place; the parts that it meets are looked up, and never made."""

from __future__ import annotations

import collections
import hashlib
import types
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from kustom.errors import CorruptFileError, FileError, LimitError, UnsafeFileError, did_you_mean
from kustom.saving import graph, marks, sizes, table
from kustom.saving.customs import Custom, Key, key_of, key_of_text
from kustom.saving.limits import Limits
from kustom.saving.trusting import Trust, bases, fits, script_of

__all__ = ["Judge"]

_KEYS = {"module", "class_name", "config", "registered_name", "shared_object_id"}
_AROUND = {"build_config", "compile_config", "name", "inbound_nodes"}
# The slots that stand for several: what may stand in each.
_ALSO = {"metric": ("metric", "loss"), "dtype": ("dtype", "quantization")}
_COMPILED = {"optimizer": "optimizer", "loss": "loss", "metrics": "metric", "weighted_metrics": "metric"}
# Everything that Keras makes, calls or names by its name; a name that is a path would be one in the archive, too.
_NAMED = {"layer", "model", "operation"}
_NUMBERS = {"schedule", "seed"}
# No more reasons are kept, and of a place no more signs at either end: a file of a megabyte can have millions of faults.
_ANOMALIES, _PLACE = 1000, 200


class _Refused(Exception):
    """A part that is refused; what stands in it is not looked at."""

    def __init__(self, error: FileError) -> None:
        self.error = error


class Judge:
    """One walk.

    Args:
        trust: Whom the load trusts.
        limits: How much the file may ask for.
        registered: The registry of the running program.
        file: The file's name, for messages.
        member: The member that is judged; None for a config alone.
        homes: The modules of parts, by registered name, where the config does not say: Keras calls that of a function `builtins`.
        found: The classes and functions that will be made of parts, by their keys, where they were looked up already.
    """

    def __init__(
        self,
        trust: Trust,
        limits: Limits,
        registered: Mapping[str, Any],
        file: str | None,
        member: str | None,
        homes: Mapping[str, str] = types.MappingProxyType({}),
        found: Mapping[Key, Any] = types.MappingProxyType({}),
    ) -> None:
        self.trust = trust
        self.limits = limits
        self.registered = registered
        self.file = file
        self.member = member
        self.homes = homes
        self.found = found
        self.anomalies: list[FileError] = []
        self.customs: list[Custom] = []
        self.parts: collections.Counter[str] = collections.Counter()
        self.layers = 0
        self.shared: dict[int, tuple[tuple[Any, ...], str]] = {}
        # By the ids of what stands in the config, which outlives the walk.
        self.digests: dict[int, str] = {}

    def refuse(self, error: type[FileError], place: str, message: str) -> NoReturn:
        """Refuse the part that is being judged."""
        raise _Refused(error(f"{message.rstrip('.')}.", file=self.file, part=self.at(place)))

    def unsafe(self, place: str, message: str) -> NoReturn:
        """Refuse the part that is being judged: nothing allows it."""
        self.refuse(UnsafeFileError, place, message)

    def corrupt(self, place: str, message: str) -> NoReturn:
        """Refuse the part that is being judged: it is not written as Keras writes it."""
        self.refuse(CorruptFileError, place, message)

    @property
    def full(self) -> bool:
        """Whether so much is wrong that no more is kept."""
        return len(self.anomalies) >= _ANOMALIES

    def at(self, place: str) -> str | None:
        """A place as messages show it."""
        place = place if len(place) <= 2 * _PLACE else f"{place[:_PLACE]}…{place[-_PLACE:]}"
        return ": ".join(filter(None, [self.member, place])) or None

    def whole(self, config: Any, slot: str) -> None:
        """Judge a config, which is that of one part."""
        if not (isinstance(config, dict) and {"class_name", "config"} <= config.keys()):
            message = "it is the config of no model; it has no class_name, or no config."
            self.anomalies.append(CorruptFileError(message, file=self.file, part=self.member))
            return
        self.part(config, slot, "")
        if self.layers > self.limits.max_layers:
            message = f"it has {self.layers:_} layers, and max_layers={self.limits.max_layers:_} allows no more than that. "
            message += f"If you know the file, give max_layers={self.layers:_}."
            self.anomalies.append(LimitError(message, file=self.file, part=self.member))

    def part(self, value: Any, slot: str, place: str) -> None:
        """Judge what stands in a place."""
        try:
            self.inner(value, slot, place)
        except _Refused as refused:
            if not self.full:
                self.anomalies.append(refused.error)

    def inner(self, value: Any, slot: str, place: str) -> None:
        """Judge what stands in a place; what is refused there is the part around it."""
        if value is None:
            return
        if isinstance(value, list):
            slot = "data" if slot == "vocabulary" else slot
            for number, item in enumerate(value):
                self.part(item, slot, f"{place}[{number}]")
        elif isinstance(value, dict):
            marked = str(value.get("class_name")).startswith("__")
            if "class_name" in value and ("config" in value or marked or slot not in ("data", "any", "node")):
                self._object(value, slot, place)
            else:
                for key, item in value.items():
                    self.part(item, slot, f"{place}.{key}")
        elif slot == "vocabulary":
            self.unsafe(
                place,
                f"the vocabulary is {value!r:.200}: a file or an address that would be read. Give the words themselves, as a list",
            )
        elif isinstance(value, str):
            self._text(value, slot, place)
        elif slot not in ("data", "any", "node", "function", *_NUMBERS) and not (slot in ("loss", "metric") and value is False):
            self.corrupt(place, f"{value!r:.80} stands where {_a(slot)} was expected")

    def _text(self, text: str, slot: str, place: str) -> None:
        if slot in ("data", "any", "node", "function"):
            return
        if slot == "dtype":
            if not table.is_policy(text):
                self.corrupt(place, f"{text[:80]!r} is no dtype of Keras's")
            return
        if text in table.names(slot) or (slot == "optimizer" and text.lower() in table.names(slot)):
            self._not_taken(place, text)
            return
        if text in self.registered or text in self.trust.objects:
            obj = self.trust.objects.get(text, self.registered.get(text))
            if not fits(obj, slot) or not table.names(slot):
                # Where Keras takes no text, it would be the class itself.
                self.unsafe(place, f"the text {text[:80]!r} names {_what(obj)}, where {_a(slot)} was expected")
            key = key_of_text(text)
            self.customs.append(Custom(text, None, text.rpartition(">")[2], slot, place, None, "registered", key))
            return
        _, mark, name = text.rpartition(">")
        if not mark:
            self.corrupt(
                place,
                f"the text {text[:80]!r} is {_a(slot)} neither of Keras's nor of the program's."
                + did_you_mean(text, table.names(slot)),
            )
        self._custom(text, None, name, slot, place, None, key_of_text(text))

    def looked_up(self, value: Any, place: str) -> None:
        """Plain data in which Keras takes text for a name, and puts what is registered under it in its place."""
        if isinstance(value, str):
            if value in self.registered:
                self.unsafe(
                    place,
                    f"the text {value[:80]!r} stands where plain data was expected, and Keras would put "
                    f"{_what(self.registered[value])} in its place, which is registered under that name",
                )
        elif isinstance(value, list):
            for number, item in enumerate(value):
                self.looked_up(item, f"{place}[{number}]")
        elif isinstance(value, dict) and not {"class_name", "config"} <= value.keys():
            for key, item in value.items():
                self.looked_up(item, f"{place}.{key}")

    def _object(self, value: dict[str, Any], slot: str, place: str) -> None:
        name = value["class_name"]
        if not isinstance(name, str):
            self.corrupt(place, f"the name of a class is {name!r:.80}")
        if name.startswith("__") and name.endswith("__"):
            self._mark(value, name, slot, place)
            return
        if "config" not in value:
            self.corrupt(place, f"{name[:80]} stands without a config")
        unknown = value.keys() - _KEYS - _AROUND
        if unknown:
            self.corrupt(place, f"nobody expects {sorted(unknown)[0][:80]!r} beside class_name")
        module, registered_name = value.get("module"), value.get("registered_name")
        if "module" not in value:
            self.corrupt(place, f"{name[:80]} has no module, as in files of Keras 2; load it with that, and save it again")
        if not isinstance(module, str | None) or not isinstance(registered_name, str | None):
            self.corrupt(place, f"the module or registered name of {name[:80]} is no text")
        if slot in ("data", "node", "vocabulary"):
            self.unsafe(place, f"{_full(module, name)} stands where plain data was expected")
        self._shared(value, (module, name, registered_name), place)
        if name == "function":
            self._function(value, module, registered_name, slot, place)
        elif table.is_of_keras(module):
            self._builtin(value, f"{module}.{name}", slot, place)
        else:
            self._foreign(value, module, name, registered_name, slot, place)

    def _shared(self, value: dict[str, Any], identity: tuple[Any, ...], place: str) -> None:
        """What is said to be one object is one: Keras takes the first, whatever the second says."""
        if "shared_object_id" not in value:
            return
        number = value["shared_object_id"]
        if not isinstance(number, int) or isinstance(number, bool):
            self.corrupt(place, f"a shared object has the number {number!r:.80}")
        digest = self._digest(value["config"])
        before = self.shared.setdefault(number, (identity, digest))
        if before[0] != identity:
            self.unsafe(place, f"{_full(*identity[:2])} is said to be the same object as {_full(*before[0][:2])}")
        if before[1] != digest:
            self.unsafe(place, f"{_full(*identity[:2])} is said to be the same object as one with other settings")

    def _digest(self, value: Any) -> str:
        """What is the same for settings that are the same; each is read once, however deep objects stand in objects."""
        if not isinstance(value, list | dict):
            return repr(value)
        known = self.digests.get(id(value))
        if known is None:
            items = sorted(value.items()) if isinstance(value, dict) else list(enumerate(value))
            text = ",".join(f"{key!r}:{self._digest(item)}" for key, item in items if key != "shared_object_id")
            known = hashlib.sha256(f"{type(value).__name__}{text}".encode()).hexdigest()
            self.digests[id(value)] = known
        return known

    def _builtin(self, value: dict[str, Any], full: str, slot: str, place: str) -> None:
        """A part of Keras's own."""
        name, config = value["class_name"], value["config"]
        entry = table.entry(full)
        if entry is None or entry["kind"] != "class":
            self.unsafe(
                place,
                f"{full[:120]} is none of the parts of Keras {' or '.join(table.versions())}. If a newer Keras has it, a newer "
                "kustom knows it",
            )
        if "refused" in entry:
            self.unsafe(
                place,
                f"{full} is never loaded from a file: {entry['refused']}. Write a part of your own, in a module",
            )
        self._fit(entry["slots"], full, slot, place)
        told = value.get("registered_name")
        if told is not None and told not in (name, entry.get("also")):
            self.unsafe(place, f"{full} is shown, and {told[:120]!r} would be made, its registered_name")
        for each in {name, told} - {None}:
            self._not_taken(place, each)
        if not isinstance(config, dict | None):
            self.corrupt(place, f"the settings of {full} are {config!r:.80}")
        self.parts[entry.get("same", full)] += 1
        self._settings(value, config or {}, entry, place, other="data")
        self._around(value, entry["slots"], place, other="data")

    def _not_taken(self, place: str, name: Any) -> None:
        """Keras looks into the registry first, so that what is Keras's own must not be registered there as another."""
        taken = self.registered.get(name)
        if taken is not None and getattr(taken, "__module__", "").split(".")[0] != "keras":
            self.unsafe(
                place, f"the running program has registered {_what(taken)} as {name!r}, and Keras would take it for its own"
            )

    def _fit(self, slots: list[str], what: str, slot: str, place: str) -> None:
        if slot != "any" and not {*_ALSO.get(slot, (slot,))} & {*slots}:
            self.unsafe(place, f"{what[:120]} is {_a(slots[0])}, where {_a(slot)} was expected")

    def _foreign(
        self, value: dict[str, Any], module: str | None, name: str, registered_name: str | None, slot: str, place: str
    ) -> None:
        """A part of somebody else."""
        registered_name = registered_name or name
        obj = self._custom(registered_name, module, name, slot, place, value["config"], key_of(value))
        config = value["config"]
        if not isinstance(config, dict | None):
            self.corrupt(place, f"the settings of {_full(module, name)} are {config!r:.80}")
        known: dict[str, Any] = {"slots": [slot], "fields": {}, "sizes": []}
        derived = bases(obj)
        if derived and "refused" in derived[0]:
            # What stands further up is what Keras's own part, which is nearer, makes harmless: every functional model is a graph.
            self.unsafe(
                place,
                f"{registered_name[:120]} derives from a part of Keras's that is never loaded from a file: {derived[0]['refused']}",
            )
        for entry in derived:
            known["fields"] |= {key: each for key, each in entry.get("fields", {}).items() if each == "vocabulary"}
            known["sizes"] += entry.get("sizes", ())
        self._settings(value, config or {}, known, place, other="any")
        self._around(value, [slot], place, other="any")

    def _custom(self, registered_name: str, module: str | None, name: str, slot: str, place: str, settings: Any, key: Key) -> Any:
        """Note a part that is not Keras's; what is registered as it, if anything is."""
        obj = self.trust.objects.get(registered_name)
        given = obj is not None
        if obj is None:
            obj = self.found.get(key)
        if obj is None:
            obj = self.registered.get(registered_name)
        if not (module is None or _is_module(module)):
            self.corrupt(place, f"the module {module[:80]!r} is none")
        package = registered_name.rpartition(">")[0]
        told = (module, self.homes.get(registered_name), package)
        origin = next((each for each in told if _is_module(each) and not _is_nowhere(each)), None)
        origin = self.trust.script([origin] if origin else [each for each in told if each not in (None, "", "builtins")]) or origin
        source = "registered" if obj is not None else "trusted" if origin is not None and self.trust.covers(origin) else None
        if obj is not None:
            if not given:
                self._agree(obj, registered_name, module, name, place)
            if not fits(obj, slot):
                self.unsafe(place, f"{registered_name[:120]} is registered as {_what(obj)}, where {_a(slot)} was expected")
        self.parts[_full(module, name) if module else registered_name] += 1
        self.customs.append(Custom(registered_name, origin, name, slot, place, settings, source, key))
        return obj

    def _agree(self, obj: Any, registered_name: str, module: str | None, name: str, place: str) -> None:
        """What a file shows is what is registered: its own name, and a module of the same package."""
        own, home = getattr(obj, "__name__", None), getattr(obj, "__module__", None) or ""
        package, _, older = registered_name.rpartition(">")
        if package and name == older and (module or "").split(".")[0] in ("", package.split(".")[0]):
            # The program has given it this name itself, which it had when the file was written.
            return
        if name not in (own, registered_name.rpartition(">")[2]):
            self.unsafe(
                place, f"{_full(module, name)} is shown, and {_what(obj)} would be made, registered as {registered_name[:120]!r}"
            )
        shown, real = (module or "__main__").split(".")[0], home.split(".")[0]
        if shown not in (real, script_of(home), "__main__", "__mp_main__", "builtins"):
            self.unsafe(
                place, f"{_full(module, name)} is shown, and {_what(obj)} would be made, registered as {registered_name[:120]!r}"
            )

    def _function(self, value: dict[str, Any], module: str | None, registered_name: str | None, slot: str, place: str) -> None:
        """A function, by its name."""
        name = value["config"]
        if slot in _NAMED:
            self.unsafe(place, f"the function {_full(module, str(name))} stands where {_a(slot)} was expected")
        if not isinstance(name, str):
            self.corrupt(place, f"the name of a function is {name!r:.80}")
        if value.keys() - _KEYS:
            self.corrupt(place, f"the function {name[:80]} has more than a name")
        own = table.is_of_keras(module)
        slots = self._slots_of_function(module, name)
        if own or (module == "builtins" and slots):
            if not slots:
                self.unsafe(place, f"the function {_full(module, name)} is none that a model is made of")
            if registered_name not in (None, name, "function"):
                self.unsafe(
                    place, f"the function {name[:80]} is shown, and {registered_name[:120]!r} would be called, its registered_name"
                )
            self._fit(slots, f"the function {_full(module, name)}", slot, place)
            self._not_taken(place, name)
            self.parts[_full(module, name)] += 1
            return
        # Some writers give the name of the class of all functions.
        told = name if registered_name in (None, "function") else registered_name
        # Keras up to 3.6 wrote the bare name of a registered function.
        if name not in (told, told.rpartition(">")[2]):
            self.unsafe(place, f"the function {name[:80]} is shown, and {told[:120]!r} would be called, its registered_name")
        obj = self._custom(told, module, name.rpartition(">")[2], slot, place, None, key_of(value))
        if isinstance(obj, type):
            self.unsafe(place, f"{told[:120]} is registered as {_what(obj)}, where a function was expected")

    def _slots_of_function(self, module: str | None, name: str) -> list[str]:
        if module == "builtins":
            return sorted(table.functions(name))
        entry = table.entry(f"{module}.{name}")
        return entry["slots"] if entry is not None and entry["kind"] == "function" else []

    def _settings(self, value: dict[str, Any], config: dict[str, Any], entry: dict[str, Any], place: str, other: str) -> None:
        inside = f"{place}.config" if place else "config"
        if {*entry["slots"]} & _NAMED:
            self._layer(value, config, inside)
        fault = sizes.fault(value["class_name"], config, entry.get("sizes", ()), self.limits)
        if fault is not None:
            self.anomalies.append(LimitError(fault[1], file=self.file, part=self.at(f"{inside}.{fault[0]}")))
        fields = entry.get("fields", {})
        functional = config.keys() >= graph.FIELDS
        if functional:
            graph.judge(self, config, inside)
        for key, item in config.items():
            if functional and key in graph.FIELDS:
                continue
            slot = fields.get(key, other)
            if slot == "operation":
                slot = "layer"
            if slot == "vocabulary" and isinstance(item, dict):
                slot = "data"
            if slot == "argument" or ("fn" in config and slot == "data"):
                # Of the wrapper of a function Keras goes through the whole config.
                self.looked_up(item, f"{inside}.{key}")
                slot = "data"
            self.part(item, slot, f"{inside}.{key}")

    def _layer(self, value: dict[str, Any], config: dict[str, Any], place: str) -> None:
        """Names and numbers of layers."""
        self.layers += 1
        for name in (value.get("name"), config.get("name")):
            if name is None:
                continue
            if not isinstance(name, str):
                self.corrupt(place, f"a layer's name is {name!r:.80}")
            if "/" in name or "\\" in name or name in (".", "..") or len(name) > 1000 or not name.isprintable():
                self.unsafe(place, f"the layer name {name[:100]!r}, which would be a path in the archive, or cannot be shown")

    def _around(self, value: dict[str, Any], slots: list[str], place: str, other: str) -> None:
        """What stands beside the settings: how it was built, and compiled."""
        build = value.get("build_config")
        inside = f"{place}." if place else ""
        self.part(build, other, f"{inside}build_config")
        fault = sizes.shapes(build, self.limits)
        if fault is not None:
            self.anomalies.append(LimitError(fault, file=self.file, part=self.at(f"{inside}build_config")))
        compiled = value.get("compile_config")
        if compiled is None:
            return
        if not isinstance(compiled, dict):
            self.corrupt(f"{inside}compile_config", f"{compiled!r:.80} stands where settings of compile were expected")
        for key, item in compiled.items():
            if key not in _COMPILED:
                self.looked_up(item, f"{inside}compile_config.{key}")
            self.part(item, _COMPILED.get(key, other), f"{inside}compile_config.{key}")

    def _mark(self, value: dict[str, Any], name: str, slot: str, place: str) -> None:
        """Plain data that JSON has no form for."""
        fault = marks.fault(value, name, slot, self.limits)
        if fault is not None:
            self.refuse(fault[0], place, fault[1])
        if slot not in ("data", "any", "node", "vocabulary", *_NUMBERS):
            self.unsafe(place, f"{name} stands where {_a(slot)} was expected")
        for key in marks.NESTED.get(name, ()):
            self.part(value["config"][key], slot, f"{place}.config.{key}")


def _is_module(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and bool(text) and all(part.isidentifier() for part in text.split("."))


def _is_nowhere(module: str) -> bool:
    """Whether nothing is to be imported from a module: a script is run by importing it, in a package, too."""
    path = module.split(".")
    return path[0] in ("keras", "builtins") or not {"__main__", "__mp_main__"}.isdisjoint(path)


def _full(module: Any, name: str) -> str:
    return f"{module}.{name}"[:120] if module else name[:120]


def _what(obj: Any) -> str:
    return f"{getattr(obj, '__module__', None)}.{getattr(obj, '__qualname__', type(obj).__name__)}"


def _a(slot: str) -> str:
    words = {
        "data": "plain data",
        "dtype": "a dtype",
        "schedule": "a number or a schedule",
        "quantization": "a quantization's settings",
    }
    return words.get(slot, f"an {slot.replace('_', ' ')}" if slot[0] in "aeiou" else f"a {slot.replace('_', ' ')}")
