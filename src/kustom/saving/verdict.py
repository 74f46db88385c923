"""The verdict on a file: what its config asks for, place by place, before anything of it is imported or made.

A class that is harmless in one place is a way in at another, so that every place has a slot: a layer's takes layers, an
activation's activations. Keras's own parts are those of a table, by exact module and name; a part of anybody else is
taken where the running program has it registered, or its module was named in `trust=`. The same config, trust and
registry give the same verdict, on every backend and in every thread: nothing here asks Keras.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kustom.errors import CorruptFileError, FileError, FormatError, LimitError, UnsafeFileError, UntrustedError
from kustom.saving import sizes
from kustom.saving.archive import CONFIG, Archive
from kustom.saving.customs import Custom, Key
from kustom.saving.judging import Judge
from kustom.saving.limits import DEFAULT, Limits
from kustom.saving.trusting import Trust, name_of_script

__all__ = ["WITH_ASSETS", "Custom", "Verdict", "judge"]

# Of Keras's own, what keeps more than numbers beside the weights: vocabularies.
WITH_ASSETS = frozenset(
    ("keras.layers.IntegerLookup", "keras.layers.StringLookup", "keras.layers.TextVectorization", "keras.utils.FeatureSpace")
)

_WORST_FIRST = (UnsafeFileError, CorruptFileError, FormatError, LimitError, UntrustedError, FileError)


@dataclass(frozen=True)
class Verdict:
    """What was found in a config.

    Args:
        customs: The parts that are not Keras's own, in the order of the config.
        imports: The modules to import, all of them trusted, before anything is made.
        anomalies: Why the file is refused, all reasons; empty where it is not.
        parts: How often each part occurs, Keras's own and others, by `module.name`.
    """

    customs: tuple[Custom, ...]
    imports: tuple[str, ...]
    anomalies: tuple[FileError, ...]
    parts: Mapping[str, int]

    def hold(self) -> None:
        """Raise the worst of the anomalies, where there is one.

        Raises:
            FileError: The file is refused.
        """
        if not self.anomalies:
            return
        worst = min(self.anomalies, key=lambda each: next(n for n, kind in enumerate(_WORST_FIRST) if isinstance(each, kind)))
        if len(self.anomalies) > 1:
            worst.add_note(f"There are {len(self.anomalies) - 1} more reasons to refuse the file; kustom.inspect shows them all.")
        raise worst


def judge(
    subject: Archive | dict[str, Any],
    *,
    trust: str | Iterable[str] | Mapping[str, Any] = (),
    limits: Limits = DEFAULT,
    registered: Mapping[str, Any] | None = None,
    file: str | None = None,
    slot: str = "layer",
    found: Mapping[Key, Any] | None = None,
) -> Verdict:
    """Judge an archive, or a config alone. Nothing is imported, not even Keras.

    Where `trust` names modules, judge again when they have been imported, without them, with what was `found`: the classes
    and functions themselves are then held against the places where the file wants them.

    Args:
        subject: What `archive.read` gave, or the config of a model or another part.
        trust: Modules that may be imported, exactly or as packages; or registered names with their classes.
        limits: How much the file may ask for.
        registered: Keras's registry: registered names with what is registered; None where Keras is not running.
        file: How messages name the file, where `subject` is a config.
        slot: What `subject` is to be: a layer (which a model is), a loss, ...
        found: What was found for parts in modules that were trusted, by `Custom.key`.

    Raises:
        UntrustedError: `trust` is none of these.
    """
    config = subject.config if isinstance(subject, Archive) else subject
    file = subject.file if isinstance(subject, Archive) else file
    member, homes = (CONFIG, _homes(subject.manifest)) if isinstance(subject, Archive) else (None, {})
    walk = Judge(Trust(trust), limits, registered or {}, file, member, homes, found or {})
    walk.whole(config, slot)
    if isinstance(subject, Archive) and not walk.anomalies:
        for error in sizes.compared(config, subject.weights, file):
            walk.anomalies.append(error)
    if isinstance(subject, Archive) and subject.assets and not walk.customs and WITH_ASSETS.isdisjoint(walk.parts):
        message = "nobody expects the member, since no part of the model keeps more than weights. Save the model again."
        walk.anomalies.append(UnsafeFileError(message, file=file, part=next(iter(subject.assets))))
    walk.anomalies += _given_in_vain(walk.trust, walk.customs, file)
    wanted = [custom for custom in walk.customs if custom.source is None]
    if wanted:
        walk.anomalies.append(_untrusted(wanted, file))
    imports = dict.fromkeys(custom.module for custom in walk.customs if custom.source == "trusted" and custom.module)
    return Verdict(tuple(walk.customs), tuple(imports), tuple(walk.anomalies), walk.parts)


def _homes(manifest: Any) -> dict[str, str]:
    """The modules that a manifest says its parts to be of; one that says nothing readable says nothing."""
    parts = manifest.get("parts") if isinstance(manifest, dict) else None
    told = [each for each in parts if isinstance(each, dict)] if isinstance(parts, list) else []
    pairs = [(each.get("registered_name"), each.get("module")) for each in told]
    return {name: module for name, module in pairs if isinstance(name, str) and isinstance(module, str)}


def _given_in_vain(trust: Trust, customs: list[Custom], file: str | None) -> Iterator[UntrustedError]:
    """What was given by hand under nearly the name of a part: another, which is registered, would be taken without a word."""
    names = {custom.registered_name for custom in customs}
    others = sorted(names - trust.objects.keys())
    for given in sorted(trust.objects.keys() - names):
        meant = [name for name in others if name.rpartition(">")[2] == given.rpartition(">")[2]]
        meant = meant or difflib.get_close_matches(given, others, n=1, cutoff=0.8)
        if meant:
            yield UntrustedError(
                f"trust= gives {given!r}, and no part of the file has that name; there is {meant[0]!r}. Give it under its whole "
                f"name: trust={{{meant[0]!r}: ...}}.",
                file=file,
                wants=(meant[0],),
            )


def _untrusted(wanted: list[Custom], file: str | None) -> UntrustedError:
    lines = []
    for custom in {(each.registered_name, each.module): each for each in wanted}.values():
        where = f"of {custom.module}" if custom.module else "of a script or notebook"
        lines.append(f"  {custom.registered_name} ({custom.slot}, {where}), at {custom.place}")
    running = name_of_script("__main__")
    found = [custom for custom in wanted if custom.module]
    modules = sorted({str(custom.module).split(".")[0] for custom in found if custom.module != running})
    own = any(custom.module == running for custom in found)
    by_hand = ", ".join(f"{name!r}: {name.rpartition('>')[2]}" for name in sorted({custom.registered_name for custom in wanted}))
    todo = []
    if modules or own:
        # The script that runs would run a second time if it were imported.
        named = [*(["__name__"] if own else []), *map(repr, modules)]
        given = named[0] if len(named) == 1 else f"({', '.join(named)})"
        todo.append(f"If you know that code, load it with kustom.load({file or 'path'!r}, trust={given}), or import it before")
    first = (
        "Define what has no module to import from, register what is registered nowhere, before loading, or give it"
        if len(found) < len(wanted)
        else "Or give the parts themselves"
    )
    todo.append(f"{first}: trust={{{by_hand}}}")
    wants = tuple(dict.fromkeys(custom.registered_name for custom in wanted))
    return UntrustedError(
        f"it wants {len(wants)} part{'s' if len(wants) > 1 else ''} that nobody vouches for:\n"
        + "\n".join(lines)
        + "\n"
        + ". ".join(todo)
        + ".",
        file=file,
        wants=wants,
    )
