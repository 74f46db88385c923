"""`kustom.load`: a model from a file of which nothing runs that is not trusted, and which is the model that was saved.

The order is what makes it safe. The whole file is read and judged first; then what is trusted is imported, and nothing else;
then the model is made without a single weight, so that a config cannot ask for memory; then each weight is read, once it is
known to fit; then it is compiled; then it computes what it computed when it was saved.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import IO, Any

import keras
import numpy as np

from kustom import errors
from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import (
    FormatError,
    KustomError,
    LimitError,
    OtherModelError,
    RebuildError,
    SourceWarning,
    WeightsError,
    hide_frames,
)
from kustom.saving import archive, arrays, manifest, process, recording, resolving
from kustom.saving.customs import key_of
from kustom.saving.limits import Limits
from kustom.saving.rebuilding import Rebuilt, causes, definition_of, is_object, last_said, nodes, public, rebuild, retype, said
from kustom.saving.verdict import judge

__all__ = ["load"]

# A file of fewer bytes counts as one of these where it is asked what a config may make beside the weights.
_SMALL = 1 << 24


@hide_frames
def load(
    path: str | os.PathLike[str] | IO[bytes],
    trust: str | Iterable[str] | Mapping[str, Any] = (),
    verify: bool = True,
    compile: bool = True,
    **limits: int,
) -> Any:
    """Load a model from a `.keras` file, as `kustom.save` or Keras wrote it.

    Keras's own parts are trusted where they belong, and so are the parts that the running program has registered. Anything
    else is refused before anything of the file is imported or made, with the line to add. The process is as it was
    afterwards, whatever happens: settings, policies, random state, the current folder.

    Args:
        path: A path, or a binary file object.
        trust: Modules that may be imported for the file's parts, exactly or as packages, such as `"my_package"`, or
            `__name__` for the program's own; or a mapping of registered names to the classes and functions themselves.
        verify: Whether the model computes its recorded output, and its losses and metrics their values, to be compared.
        compile: Whether it is compiled as it was.
        limits: How much the file may ask for, by the names of `kustom.saving.limits.Limits`, such as `max_bytes=10**9`.

    Returns:
        The model.

    Raises:
        FileError: The file cannot be read, or must not be; the kinds of it say more:
        UntrustedError: It wants parts that nobody vouches for.
        UnsafeFileError: It holds what no model needs.
        CorruptFileError: It is damaged.
        LimitError: It is larger than the limits allow.
        MissingPartError: A trusted module is missing, or does not have the part.
        RebuildError: A part cannot be made from its settings.
        WeightsError: The weights do not fit the model.
        OtherModelError: It loads, and is another model than was saved.

    Warns:
        SourceWarning: The source of a part is another than when it was saved.

    Example:
        >>> import io, keras, kustom
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> file = io.BytesIO()                          # or a path: "model.keras"
        >>> kustom.save(model, file)
        >>> kustom.load(file).name == model.name
        True
    """
    allowed = Limits.named(limits)
    with process.kept(names=False), archive.read(path, allowed) as opened:
        return _Loading(opened, path, trust, allowed).model(verify, compile)


class _Loading:
    """One load of one file."""

    def __init__(self, opened: archive.Archive, path: Any, trust: Any, limits: Limits) -> None:
        self.opened, self.file = opened, opened.file
        # Bytes of variables that no value of the file is for.
        self.fresh = 0
        self.manifest: dict[str, Any] = opened.manifest or {}
        if opened.manifest is not None:
            manifest.check_format(opened.manifest, self.file)
        verdict = judge(opened, trust=trust, limits=limits, registered=private.registry())
        verdict.hold()
        if verdict.imports:
            resolving.import_modules(verdict.imports, resolving.folder_of(path), self.file)
        self.parts = resolving.resolve(verdict, trust, self.file)
        if verdict.imports:
            # What they have can be held against its places now, and nothing else is taken any more.
            given = trust if isinstance(trust, Mapping) else ()
            judge(opened, trust=given, limits=limits, registered=private.registry(), found=self.parts.found).hold()
        self.config = self._config()
        self.places = dict(nodes(self.config))

    def model(self, verify: bool, compile: bool) -> Any:
        """The loaded model."""
        rebuilt = self._rebuilt()
        store = private.Reading(self._stored())
        with resolving.assets(self.opened) as assets:
            reached = self._load(rebuilt.model, store, assets, ())
            self._refuse_misfits(rebuilt.model, store)
            self._initialize(rebuilt.made)
            self._rename(rebuilt.model)
            if compile:
                self._compile(rebuilt)
                # What was compiled is reached through the models that hold it.
                above = {id(layer) for model in self._compiled(rebuilt) for layer in private.holders_of(rebuilt.model, model)}
                self._load(rebuilt.model, store, assets, reached - above)
        # The sums were computed meanwhile.
        self.opened.verify()
        if verify and "recorded" in self.manifest:
            self._verify(rebuilt, compile)
        self._warn_of_sources()
        return rebuilt.model

    def _config(self) -> dict[str, Any]:
        types = self.manifest.get("types", {})
        try:
            config = retype(self.opened.config, types)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._malformed("types", error) from error
        return _numbered(config)

    def _malformed(self, entry: str, error: Exception) -> FormatError:
        return FormatError(
            f"its entry {entry!r} is not what kustom writes: {type(error).__name__}: {error}. Get the file again.",
            file=self.file,
            part=archive.MANIFEST,
        )

    def _rebuilt(self) -> Rebuilt:
        try:
            return rebuild(self.config, self.parts.find)
        except Exception as error:
            # Constructors of the parts run here, and raise whatever they do.
            raise self._not_made(error) from error

    def _not_made(self, error: Exception) -> RebuildError:
        told = None
        for inner in causes(error):
            told = inner if isinstance(inner, KustomError) else told
        text = last_said(told or error, 600)
        wrote, here = self.opened.metadata.get("keras_version"), keras.__version__
        hint = self.parts.nearest(text) + (f" The file was written with Keras {wrote}; this is {here}." if wrote != here else "")
        return RebuildError(f"{self.parts.last_name(text)}{text}{hint}", file=self.file, part=self.parts.last_place())

    def _stored(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for dataset in self.opened.weights.walk():
            path, _, key = dataset.path.rpartition("/")
            owner, _, variables = path.rpartition("/")
            if variables != "vars":
                continue
            read = _reader(dataset)
            found.setdefault(owner, {})[key] = private.Stored(tuple(dataset.shape), dataset.dtype, read, dataset.path)
        return found

    def _load(self, model: Any, store: Any, assets: Any, skip: Iterable[int]) -> set[int]:
        with warnings.catch_warnings():
            # What has no value is refused below, wherever it stands.
            warnings.filterwarnings("ignore", message="Skipping nested container")
            if _has_unbuilt_optimizer(store):
                warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            try:
                reached, failed = private.load_state(model, store, assets, skip_ids=skip)
            except (KeyError, OSError, TypeError, ValueError) as error:
                raise self._misfit(f"{type(error).__name__}: {said(error)}") from error
        if failed:
            part, error = failed[0]
            if isinstance(error, KustomError):
                raise error
            name = getattr(part, "name", type(part).__name__)
            raise self._misfit(f"{type(part).__name__} {name!r}: {said(error)}") from error
        return reached

    def _misfit(self, text: str) -> WeightsError:
        return WeightsError(f"{text}. Load it with the code that it was written with.", file=self.file, part=archive.WEIGHTS)

    def _refuse_misfits(self, model: Any, store: Any) -> None:
        for variable in model.weights:
            if not private.has_value(variable):
                raise self._misfit(f"the file has no value for {variable.path}, so that it would be a fresh one")
        # Of an optimizer in an attribute that is not built Keras says itself that it was passed over.
        passed_over = private.names_of_own_optimizers(model)
        untaken = [path for path in store.untaken() if manifest.is_of_layers(path) and passed_over.isdisjoint(path.split("/"))]
        if untaken:
            raise self._misfit(f"the model that its config makes has no place for {', '.join(untaken[:3])}")

    def _rename(self, model: Any) -> None:
        """Give the weights the paths that they had, by which an optimizer that is several knows which are whose."""
        paths = self.manifest.get("paths") or []
        if not isinstance(paths, list) or not all(isinstance(path, str) and 0 < len(path) < 4096 for path in paths):
            raise self._malformed("paths", TypeError("no list of paths"))
        if len(paths) == len(model.weights):
            for variable, path in zip(model.weights, paths, strict=True):
                private.set_path(variable, path)

    def _initialize(self, made: list[keras.Variable]) -> None:
        """Give what has no weights in a file its first value: seeds, metrics; and that only where it is small beside them."""
        waiting = [variable for variable in made if not private.has_value(variable)]
        self._account(waiting)
        try:
            private.initialize(waiting)
        except Exception as error:
            # Initializers run here, with what the config gives them.
            raise self._not_made(error) from error

    def _account(self, made: list[keras.Variable]) -> None:
        """Count what has its first value from no file, of all models and what they were compiled with together."""
        self.fresh += sum(math.prod(variable.shape) * (8 if "64" in variable.dtype else 4) for variable in made)
        if self.fresh > max(self.opened.size, _SMALL) * 8:
            raise LimitError(
                f"its config asks for {self.fresh:,} bytes for which the file has no values, and the file has "
                f"{self.opened.size:,}. If it was compiled, kustom.load(…, compile=False) may take it.",
                file=self.file,
                part=archive.CONFIG,
            )

    def _compiled(self, rebuilt: Rebuilt) -> list[Any]:
        return [rebuilt.objects[number] for number, _ in rebuilt.compiles]

    def _compile(self, rebuilt: Rebuilt) -> None:
        for number, config in rebuilt.compiles:
            model = rebuilt.objects[number]
            try:
                made = private.compile_again(model, config, self.parts.find, rebuilt.objects, self._initialize, self._account)
            except (LimitError, MemoryError):
                raise
            except Exception as error:
                # As above: losses and metrics are made here.
                raise self._not_made(error) from error
            rebuilt.objects.update(made)

    def _verify(self, rebuilt: Rebuilt, compiled: bool) -> None:
        recorded = self.manifest["recorded"]
        try:
            alike = (
                self.manifest["versions"]["backend"] == keras.backend.backend() and recorded["device"] == current().device_kind()
            )
            allowed = float(recorded["tolerance"]) * (1 if alike else 10)
            how = self._other_output(rebuilt.model, recorded, allowed) if "outputs" in recorded else None
            shape = tuple(recorded["outputs"][0]["shape"]) if recorded.get("outputs") else ()
            if how is None and compiled:
                how = self._other_measure(rebuilt, recorded.get("measures", []), shape, allowed)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._malformed("recorded", error) from error
        if how is not None:
            changed = [name for name, _, _ in self._changed_sources()]
            because = f" The source of {', '.join(changed)} is another than when it was saved." if changed else ""
            raise OtherModelError(
                f"the model is another than the one that was saved: {how}.{because} Load it with the code that it was written "
                "with, or with verify=False where the change is meant.",
                file=self.file,
            )

    def _other_output(self, model: Any, recorded: dict[str, Any], allowed: float) -> str | None:
        x = recording.inputs_from(recorded["input"], model)
        try:
            given, losses = recording.outputs(model, x)
        except Exception as error:
            # What the parts raise when they are called; when it was saved, they did not.
            return f"it refuses the recorded input, with {type(error).__name__}: {said(error)[:300]}"
        return recording.compare(recorded["outputs"], given, allowed, (recorded.get("losses"), losses))

    def _other_measure(self, rebuilt: Rebuilt, measures: list[Any], shape: tuple[int, ...], allowed: float) -> str | None:
        for entry in measures:
            measure = self._made_at(entry["place"], rebuilt)
            if measure is None:
                continue
            before, after = arrays.decoded(entry["values"]), recording.values(measure, shape).get(entry["probe"])
            if after is None or not np.allclose(after, before, rtol=max(allowed, 1e-5), atol=1e-6, equal_nan=True):
                now = "refuses that" if after is None else f"is {after[0]:g}"
                return f"{definition_of(measure).__name__} at {entry['place']} was {before[0]:g} for made-up targets and {now}"
        return None

    def _made_at(self, place: str, rebuilt: Rebuilt) -> Any:
        """What stands in a place of the config; None where it is Keras's own function, or nothing."""
        node = self.places.get(place, {})
        made = rebuilt.objects.get(node.get("shared_object_id", -1))
        return self.parts.found.get(key_of(node)) if made is None and node else made

    def _changed_sources(self) -> list[tuple[str, str, str]]:
        changed = []
        for part in self.manifest.get("parts", []):
            now, before = manifest.fingerprint(self.parts.named(part["registered_name"])), part.get("source")
            if now and before and now != before:
                changed.append((part["registered_name"], str(before), now))
        return changed

    def _warn_of_sources(self) -> None:
        try:
            changed = self._changed_sources()
        except (AttributeError, KeyError, TypeError) as error:
            raise self._malformed("parts", error) from error
        for name, before, now in changed:
            errors.warn(f"{self.file}: the source of {name} was {before[:12]} when it was saved and is {now[:12]}.", SourceWarning)


def _reader(dataset: Any) -> Any:
    return lambda: current().own(dataset.read())


def _numbered(config: dict[str, Any]) -> dict[str, Any]:
    """The config, each object in it with a `shared_object_id`."""
    taken = [node["shared_object_id"] for _, node in nodes(config) if isinstance(node.get("shared_object_id"), int)]
    count = max(taken, default=0)

    def copy(value: Any) -> Any:
        nonlocal count
        if isinstance(value, dict):
            numbered = public({key: copy(item) for key, item in value.items()})
            if is_object(value) and "shared_object_id" not in value:
                count += 1
                numbered["shared_object_id"] = count
            return numbered
        return type(value)(copy(item) for item in value) if type(value) in (list, tuple) else value

    return copy(config)


def _has_unbuilt_optimizer(store: Any) -> bool:
    """Whether the optimizer of a model was saved before its first step: it has its counters and nothing else."""
    stored = store.get("optimizer/vars") or store.get("optimizer")
    found = list(stored.values())
    # Of one that stands in another attribute Keras says itself that it was passed over.
    return bool(found) and all(not each.shape for each in found)
