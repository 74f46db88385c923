"""The house: who imports whom, what is private, and what is on the page of names."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import kustom

SOURCE = Path(kustom.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py"))
# Downwards only: a folder may import from itself and from those behind it.
ORDER = ["commands", "checking", "saving", "training", "gradients", "defining", "backends", "typing", "errors"]
PUBLIC = [
    *["loss", "metric", "activation", "initializer", "regularizer", "constraint", "layer", "part", "field", "Ratio", "Sums"],
    *["GradientTape", "grad", "value_and_grad", "jacobian", "hessian", "hvp", "custom_gradient"],
    *["numerical_gradient", "check_gradient", "function", "Loop", "Supervised", "Model", "save", "load", "inspect"],
    *["check", "parametrize_with_checks", "plot"],
]


def _imports(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_backends_import_a_backend(path):
    if _room(path) != "backends":
        assert not [name for name, _ in _imports(path) if name.split(".")[0] in ("tensorflow", "jax", "torch")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_backends_take_a_backend_from_what_is_imported(path):
    loaded = [
        node.slice.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules" and isinstance(node.slice, ast.Constant)
    ]
    if _room(path) != "backends":
        assert not [name for name in loaded if str(name).split(".")[0] in ("tensorflow", "jax", "torch")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_is_private_to_keras_stands_in_one_package(path):
    if SOURCE / "backends" / "keras" not in path.parents:
        assert not [name for name, _ in _imports(path) if name.startswith("keras.src")]
        assert "keras.src" not in path.read_text(encoding="utf-8").replace("keras.src.", "") or path.name == "errors.py"


def test_defining_touches_no_private_name_that_is_not_its_own():
    used: dict[str, str] = {}
    own = {"_getframe", "_fields"}  # of Python: the caller's frame, and what tells a named tuple
    for path in FILES:
        if _room(path) != "defining":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith(("__", "_kustom")):
                used[node.attr] = f"{path.name}:{node.lineno}"
    assert not {name: place for name, place in used.items() if name not in own}


@pytest.mark.parametrize("path", [p for p in FILES if _room(p) in ORDER], ids=lambda p: str(p.relative_to(SOURCE)))
def test_arrows_point_downwards(path):
    rank = ORDER.index(_room(path))
    for name, line in _imports(path):
        parts = name.split(".")
        if parts[0] == "kustom" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) >= rank, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("folder", ["textbook", "../../recipes"])
def test_the_chapters_parts_and_the_recipes_use_the_public_names_alone(folder):
    allowed = {"kustom", "kustom.typing", "kustom.errors", "kustom.textbook", *(f"kustom.{name}" for name in PUBLIC)}
    for path in (SOURCE / folder).resolve().glob("*.py"):
        for name, line in _imports(path):
            if name.split(".")[0] == "kustom":
                module = ".".join(name.split(".")[:2])
                assert name in allowed or module in allowed, f"{path}:{line} imports {name}"


def test_every_backend_has_the_same_names():
    def names(module):
        tree = ast.parse((SOURCE / "backends" / f"{module}.py").read_text(encoding="utf-8"))
        made = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        made += [t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
        return {name for name in made if not name.startswith("_")}

    assert names("jax") == names("tensorflow") == names("torch")


def test_the_page_of_names():
    assert {*kustom.__all__} == {*PUBLIC, "errors", "textbook", "typing"}
    assert {*dir(kustom)} == {*kustom.__all__, "__version__"}
    for name in kustom.__all__:
        assert getattr(kustom, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'losss'; it has"):
        kustom.losss  # pyright: ignore


def test_every_public_name_says_what_it_is():
    for name in PUBLIC:
        text = getattr(kustom, name).__doc__
        assert "Example:" in text
        assert ">>>" in text


def test_importing_kustom_starts_nothing():
    code = "import sys, kustom; print([m for m in ('keras', 'tensorflow', 'jax', 'torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kustom_imports_no_backend_but_the_one_in_use():
    code = (
        "import sys, keras; before = set(sys.modules); import kustom; kustom.loss, kustom.part, kustom.textbook;"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_modules_can_all_be_imported():
    for module in pkgutil.walk_packages([str(SOURCE)], "kustom."):
        # Pullbacks are JAX's.
        parts = {{"pullbacks": "jax"}.get(part, part) for part in module.name.split(".")}
        if parts & ({"tensorflow", "jax", "torch"} - {keras.backend.backend()}):
            continue
        __import__(module.name)


def test_no_banners():
    assert not [path for path in FILES if "# ---" in path.read_text(encoding="utf-8")]


def test_no_part_is_handed_to_a_loader():
    word = "custom" + "_objects"
    root = SOURCE.parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("the wheel is tested away from its sources")
    for folder in ("src", "tests", "docs", "recipes", "benchmarks", "scripts"):
        for path in (root / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".sh"):
                assert word not in path.read_text(encoding="utf-8"), path
