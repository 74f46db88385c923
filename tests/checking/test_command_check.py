"""`kustom check`, `kustom rule` and `kustom rules`: targets, selection, exemptions, baselines, settings, exit statuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import pytest

from kustom import errors
from kustom.checking.baseline import read_baseline
from kustom.checking.settings import read_settings
from kustom.checking.targets import files_in, module_name
from kustom.commands import main
from kustom.commands.check import _laid_over

PARTS = """
import keras
from keras import ops


def log_softplus(z):
    return ops.log(ops.exp(z) + 1.0)


def mean_of_rows(x):
    return ops.maen(x, axis=-1)


@keras.saving.register_keras_serializable()
class Halving(keras.layers.Layer):
    def call(self, x):
        return x / 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def found(capsys, *words: str) -> tuple[int, list[tuple[str, str, str]]]:
    status = main(["check", *words, "--format", "json"])
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    return status, [(o["place"], o["part"], o["code"]) for o in outcomes if o["type"] == "Finding" and not o["expected_because"]]


CHOSEN = ("--select", "U,E,N301")


def test_a_file_is_read_and_its_parts_are_checked(capsys):
    write("my_parts.py", PARTS)
    status, findings = found(capsys, "my_parts.py", *CHOSEN)
    assert status == 1
    assert findings == [("my_parts.py:11", "mean_of_rows", "U003"), ("my_parts.py:6", "log_softplus", "N301")]


def test_the_table_names_the_line_and_the_mend(capsys):
    write("my_parts.py", PARTS)
    assert main(["check", "my_parts.py", *CHOSEN]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["my_parts.py:6", "log_softplus", "N301", "the", "result", "is", "inf", "at", "100"]
    assert lines[2].startswith("my_parts.py:11  mean_of_rows  U003  ops has no attribute 'maen'; 'mean' is near")
    assert lines[3] == "    write ops.mean"
    assert "checked as if mended: ops.maen read as ops.mean (line 11)" in lines
    assert "2 findings" in lines[-1]


def test_details_show_what_was_measured(capsys):
    write("my_parts.py", PARTS)
    main(["check", "my_parts.py", *CHOSEN, "--details"])
    text = capsys.readouterr().out
    assert "    got: inf\n    expected: 100\n" in text
    assert "    to see it:\n" in text


def test_what_is_right_ends_with_0(capsys):
    write("halving.py", "import keras\n\ndef halving_softplus(z):\n    return keras.ops.softplus(z)\n")
    assert found(capsys, "halving.py", *CHOSEN) == (0, [])


def test_a_file_without_parts_is_read_and_not_imported(capsys):
    write("script.py", "import keras\nprint('ran')\nopen('ran', 'w')\nkeras.ops.zeors(3)\n")
    status, findings = found(capsys, "script.py")
    assert (status, findings) == (1, [("script.py:4", "script.py", "U003")])
    assert not Path("ran").exists()


def test_nothing_is_imported_where_only_the_source_is_asked_for(capsys):
    write("loud.py", "import keras\nopen('ran', 'w')\nclass Loud(keras.layers.Layer):\n    pass\n")
    assert found(capsys, "loud.py", "--select", "U") == (0, [])
    assert not Path("ran").exists()


def test_a_package_is_checked_file_by_file_and_its_tests_are_left_out(capsys):
    write("my_package/__init__.py", "from my_package.inner.losses import far\n")
    write("my_package/inner/__init__.py", "")
    write("my_package/inner/losses.py", "from keras import ops\n\ndef far(y_true, y_pred):\n    return ops.abs(y_true - y_perd)\n")
    write("my_package/inner/test_losses.py", "from nowhere import nothing\nnothing_too\n")
    write("my_package/tests/helper.py", "nothing_too\n")
    expected = [("my_package/inner/losses.py:4", "far", "U001")]
    assert found(capsys, "my_package", "--select", "U,E,N301")[1] == expected
    assert [place.rpartition("my_package")[2] for place, _, _ in found(capsys, "my_package", "--select", "U")[1]] == [
        "/inner/losses.py:4"
    ]
    assert found(capsys, "my_package.inner.losses", "--select", "U")[1][0][1:] == expected[0][1:]


def test_a_part_can_be_named_with_its_arguments(capsys):
    write(
        "scaled.py",
        "from keras import ops\n\ndef my_soft(x):\n    return ops.log(ops.exp(x) + 1)\n\ndef other(x):\n    return ops.epx(x)\n",
    )
    for target in ("scaled:my_soft", "scaled.py:my_soft"):
        status, findings = found(capsys, target, "--select", "U,N301")
        assert (status, [(part, code) for _, part, code in findings]) == (1, [("my_soft", "N301")])
    assert found(capsys, "keras.layers:Dense(4)", "--select", "U,N301") == (0, [])


@pytest.mark.parametrize(
    "words",
    [
        ["nowhere.py"],
        ["nowhere.ipynb"],
        ["no_module_of_this_name"],
        ["keras.layers:NoLayer(4)"],
        ["notes.txt"],
        ["my_parts.py", "--select", "Q"],
        ["my_parts.py", "--seed", "one"],
        ["my_parts.py", "--backend", "theano"],
        ["my_parts.py", "--timeout", "-1"],
        ["my_parts.py", "--baseline", "nowhere.json"],
        ["my_parts.py", "--format", "yaml"],
        ["--no-such-option"],
        [],
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_ends_with_2_and_a_line(words, capsys):
    write("my_parts.py", "x = 1\n")
    write("notes.txt", "")
    assert main(["check", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip()


def test_another_backend_than_this_process_runs_is_refused(capsys):
    write("my_parts.py", "x = 1\n")
    other = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
    assert main(["check", "my_parts.py", "--backend", min(other)]) == 2
    assert "KERAS_BACKEND" in capsys.readouterr().err


def test_a_module_that_cannot_be_imported_is_a_finding_unless_a_library_is_missing(capsys):
    write("broken_parts.py", "import keras\n\nclass Mine(keras.layers.Layer):\n    units = int('three')\n")
    assert found(capsys, "broken_parts.py", *CHOSEN) == (1, [("broken_parts.py:4", "broken_parts.py", "E802")])
    write("needy_parts.py", "import keras\nimport not_installed_at_all\n\nclass Mine(keras.layers.Layer):\n    pass\n")
    assert found(capsys, "needy_parts.py", *CHOSEN) == (0, [])
    main(["check", "needy_parts.py", *CHOSEN])
    assert "not checked: it needs not_installed_at_all, which is not installed" in capsys.readouterr().out
    write("not_python.py", "def f(:\n")
    assert found(capsys, "not_python.py", *CHOSEN) == (1, [("not_python.py:1", "not_python.py", "E802")])


EXEMPT = """
import keras
from keras import ops


def log_softplus(z):  {}
    return ops.log(ops.exp(z) + 1.0)
"""


@pytest.mark.parametrize(
    ("comment", "status"),
    [
        ("# kustom: ignore[N301] its inputs are small", 0),
        ("# kustom: ignore[G202, N301] its inputs are small", 0),
        ("# kustom: ignore[N] its inputs are small", 0),
        ("# kustom: ignore[N301]", 1),
        ("# kustom: ignore[G202] another", 1),
    ],
)
def test_a_comment_exempts_with_its_reason(comment, status, capsys):
    write("exempt_parts.py", EXEMPT.format(comment))
    assert main(["check", "exempt_parts.py", "--select", "N301"]) == status
    assert ("exempts N301 without a reason" in capsys.readouterr().out) == (comment == "# kustom: ignore[N301]")


def test_a_comment_above_exempts_what_is_below(capsys):
    write(
        "above.py",
        "from keras import ops\n\n\n# kustom: ignore[U003] an operation of tomorrow\ndef f(x):\n    return ops.tomorow(x)\n",
    )
    assert main(["check", "above.py", "--select", "U"]) == 0
    assert "1 expected" in capsys.readouterr().out


def test_findings_of_old_are_not_counted(capsys):
    write("old_parts.py", PARTS)
    assert main(["check", "old_parts.py", *CHOSEN, "--write-baseline", "old.json"]) == 0
    assert sum(read_baseline("old.json").values()) == 2
    assert main(["check", "old_parts.py", *CHOSEN, "--baseline", "old.json"]) == 0
    # A line more above: known by the part, not by the line. One more of the same is new.
    write("old_parts.py", "\n" + PARTS.replace("return ops.maen(x, axis=-1)", "return ops.maen(ops.maen(x))"))
    capsys.readouterr()
    assert found(capsys, "old_parts.py", "--select", "U", "--baseline", "old.json")[0] == 1
    write("old_parts.py", "x = 1\n")
    assert main(["check", "old_parts.py", *CHOSEN, "--baseline", "old.json"]) == 0
    assert "in the baseline, and found no more: old_parts.py log_softplus  N301" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--output", "--write-baseline"])
@pytest.mark.parametrize("place", ["nowhere/x.json", "."])
def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_checked(capsys, option, place):
    write("ran_parts.py", "open('ran', 'w')\n")
    assert main(["check", "ran_parts.py", option, place]) == 2
    assert capsys.readouterr().err.startswith(f"kustom: {option} {place}: ")
    assert not Path("ran").exists()


@pytest.mark.parametrize("option", ["--output", "--write-baseline"])
def test_a_file_that_cannot_be_written_is_said_in_a_line(capsys, option):
    write("my_parts.py", PARTS)
    name = "x" * 300
    assert main(["check", "my_parts.py", "--select", "U", option, name]) == 2
    assert "x cannot be written: File name too long." in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"version": 2, "findings": []}', "nothing", '{"version": 1, "findings": [{}]}'])
def test_what_is_no_baseline_is_refused(content):
    write("wrong.json", content)
    with pytest.raises(errors.UsageError, match=r"wrong\.json is "):
        read_baseline("wrong.json")


def test_settings_stand_in_pyproject_and_the_command_line_goes_before_them(capsys):
    write("my_parts.py", PARTS)
    write("pyproject.toml", '[tool.kustom]\nselect = ["U", "N301"]\nignore = ["U003"]\nseed = 3\n')
    assert [code for _, _, code in found(capsys, "my_parts.py")[1]] == ["N301"]
    assert [code for _, _, code in found(capsys, "my_parts.py", "--select", "U", "--ignore", "U001")[1]] == ["U003"]
    inner = Path("inner")
    inner.mkdir()
    assert read_settings(inner).seed == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('selct = ["U"]', "Did you mean 'select'"),
        ('select = "U"', "select is a list of texts, not 'U'"),
        ("seed = 0.5", 'seed is a whole number, or "random", not 0.5'),
        ("preview = 1", "preview is true or false, not 1"),
        ("backend = 1", "backend is a text, not 1"),
        ("timeout = -1", "timeout is a positive number, not -1"),
        ("select =", "is no TOML"),
    ],
)
def test_settings_that_there_are_not_are_refused(table, message):
    write("pyproject.toml", f"[tool.kustom]\n{table}\n")
    with pytest.raises(errors.UsageError) as caught:
        read_settings()
    assert message in str(caught.value)


def test_folders_leave_out_what_is_excluded_and_hidden():
    for path in (
        "a.py",
        "b/c.py",
        "b/test_c.py",
        "b/c_test.py",
        ".hidden/d.py",
        "tests/e.py",
        "b/generated/f.py",
        "conftest.py",
        "n.ipynb",
    ):
        write(path, "")
    names = [path.as_posix() for path in files_in(Path(), ["generated/*"])]
    assert names == ["a.py", "b/c.py", "n.ipynb"]


def test_a_file_is_imported_under_the_name_that_its_packages_give_it():
    for path in ("outer/__init__.py", "outer/inner/__init__.py", "outer/inner/leaf.py", "alone/leaf.py"):
        write(path, "")
    assert module_name(Path("outer/inner/leaf.py")) == "outer.inner.leaf"
    assert module_name(Path("outer/inner/__init__.py")) == "outer.inner"
    assert module_name(Path("alone/leaf.py")) == "leaf"


def test_reports_of_several_backends_are_laid_over_one_another():
    from kustom.checking.finding import Finding, Passed
    from kustom.checking.report import Report

    both = Finding(code="N301", claim="", part="f", place="f.py:1", message="inf")
    one = Finding(code="B601", claim="", part="f", place="f.py:1", message="raises")
    reports = {"jax": Report([both, one]), "torch": Report([both, Passed("B601", "f")])}
    laid = _laid_over(reports).outcomes
    assert [(o.code, getattr(o, "variant", "")) for o in laid if isinstance(o, Finding)] == [("N301", ""), ("B601", "jax")]
    assert [(o.code, o.variant) for o in laid if isinstance(o, Passed)] == [("B601", "torch")]


@pytest.mark.slow
def test_every_backend_is_asked_in_a_process_of_its_own(capsys):
    write("my_parts.py", PARTS)
    status, findings = found(capsys, "my_parts.py", *CHOSEN, "--backend", "all")
    assert status == 1
    assert findings == [("my_parts.py:11", "mean_of_rows", "U003"), ("my_parts.py:6", "log_softplus", "N301")]


def test_a_rule_is_explained(capsys):
    assert main(["rule", "u003", "N301"]) == 0
    text = capsys.readouterr().out
    assert "U003  attributes exist" in text
    assert "tf.zeors_like" in text
    assert "Why: " in text
    assert "Mend: " in text
    assert main(["rule", "Z999"]) == 2
    assert "there is no rule 'Z999'" in capsys.readouterr().err


def test_the_rules_are_listed_by_family(capsys):
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["U  names and calls", "  U001  Every name in its body is defined."]
    assert main(["rules", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert all(rule["asserts"] and rule["why"] and rule["example"] and rule["mend"] for rule in listed)
    assert len({rule["code"] for rule in listed}) == len(listed)


def test_without_a_command_there_is_help_and_2(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "check the parts in files" in capsys.readouterr().out
    assert main(["--version"]) == 0
