"""The examples in the docstrings of kustom do what they show, and every public part of it has one."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest

import kustom
from kustom import errors, textbook

OTHERS = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
MODULES = [
    "kustom",
    *(
        module.name
        for module in pkgutil.walk_packages(kustom.__path__, "kustom.")
        if OTHERS.isdisjoint(module.name.split(".")) and not module.name.endswith("__main__")
    ),
]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(module, module.__name__)
    # A decorated activation is an object, which the finder passes over.
    for name, value in vars(module).items():
        if not inspect.isclass(value) and getattr(getattr(value, "fn", None), "__module__", None) == module.__name__:
            found += finder.find(value.fn, f"{module.__name__}.{name}", module)
    # The function of a decorated one is found again inside of it.
    return list({test.docstring: test for test in found if test.examples}.values())


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_do_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for test in examples(importlib.import_module(name)):
        report: list[str] = []
        failed = doctest.DocTestRunner().run(test, out=report.append).failed
        assert not failed, "".join(report)


PUBLIC: dict[str, Any] = {
    **{f"kustom.{name}": getattr(kustom, name) for name in kustom.__all__ if not inspect.ismodule(getattr(kustom, name))},
    **{f"kustom.textbook.{name}": getattr(textbook, name) for name in textbook.__all__},
    "kustom.typing.Converter": kustom.typing.Converter,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or "")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "KustomError"])
def test_an_error_explains_itself_by_a_wrong_and_a_right_example(name: str) -> None:
    explanation = inspect.getdoc(getattr(errors, name)) or ""
    assert explanation.index("Wrong") < explanation.index("Right")
