"""The battery as tests: one for each part and check, under names that stay, and nothing where it is not used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.textbook import HuberLoss, MyDense


def my_overflowing_softplus(z):
    return ops.log(ops.exp(z) + 1.0)


class Recorder:
    def __init__(self):
        self.reports = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome == "skipped":
            outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
            outcome = "xpassed" if hasattr(report, "wasxfail") and report.passed else outcome
            self.reports[report.nodeid] = (outcome, str(report.longrepr or ""))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}

    def go(*words):
        recorder = Recorder()
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "pytest_kustom", "-p", "no:xdist", *words], plugins=[recorder])
        return status, recorder.reports

    yield go
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def marked(parts, **chosen):
    def test(part, check):
        check(part)

    (mark,) = kustom.parametrize_with_checks(parts, **chosen)(test).pytestmark
    return mark.args[1]


def test_there_is_a_test_for_each_part_and_check_with_a_readable_name():
    ids = [case.id for case in marked([HuberLoss(threshold=2.0), MyDense(4), MyDense(3)], only="U")]
    assert ids[0] == "HuberLoss-U001-names_are_defined"
    assert {name.partition("-U")[0] for name in ids} == {"HuberLoss", "MyDense", "MyDense-2"}
    assert len(set(ids)) == len(ids)
    assert not [name for name in ids if re.search(r"0x|[<>()\s]", name)]


def test_the_names_are_the_same_each_time():
    parts = [keras.layers.Dense(4), keras.losses.MeanSquaredError(), my_overflowing_softplus]
    assert [case.id for case in marked(parts)] == [case.id for case in marked(parts)]


def test_no_parts_are_refused():
    with pytest.raises(errors.UsageError, match="was given no parts"):
        kustom.parametrize_with_checks([])


def test_without_pytest_there_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(errors.MissingLibraryError, match="needs pytest"):
        kustom.parametrize_with_checks([HuberLoss()])


def test_a_check_that_finds_something_fails_with_the_report():
    (case,) = marked([my_overflowing_softplus], only="N301")
    part, check = case.values
    with pytest.raises(errors.ConformanceError, match=r"N301.*the result is inf at 100"):
        check(part)
    (case,) = marked([keras.activations.softplus], only="N301")
    case.values[1](case.values[0])


TESTS = """
import keras
import kustom
from keras import ops

def overflowing(z):
    return ops.log(ops.exp(z) + 1.0)

def expected(z):
    return ops.log(ops.exp(z) + 1.0)

expected.__kustom__ = {"kind": "activation", "expected_failures": {"N301": "small inputs", "U001": "for no reason"}}

@kustom.parametrize_with_checks([overflowing, expected, keras.activations.softplus], only="U001,N301")
def test_parts(part, check):
    check(part)
"""


def test_the_decorated_test_runs_under_pytest(run):
    Path("test_my_parts.py").write_text(TESTS)
    status, reports = run("test_my_parts.py")
    found = {name.partition("[")[2].rstrip("]").rpartition("-")[0]: outcome for name, (outcome, _) in reports.items()}
    assert status == 1
    assert found == {
        "overflowing-U001": "passed",
        "overflowing-N301": "failed",
        "expected-U001": "xpassed",
        "expected-N301": "xfailed",
        "softplus-U001": "passed",
        "softplus-N301": "passed",
    }


PARTS = """
from keras import ops

def overflowing_softplus(z):
    return ops.log(ops.exp(z) + 1.0)

def right_softplus(z):
    return ops.softplus(z)

def misspelt(x):
    return ops.sofplus(x)
"""


def test_a_package_is_checked_by_an_option(run):
    Path("their_parts.py").write_text(PARTS)
    Path("pyproject.toml").write_text('[tool.kustom]\nselect = ["N301"]\n')
    status, reports = run("--kustom-check", "their_parts.py", "--rootdir", ".")
    found = {name: outcome for name, (outcome, _) in reports.items()}
    assert status == 1
    assert found == {
        "kustom-check their_parts.py::U003-attributes_exist": "failed",
        "kustom-check their_parts.py::overflowing_softplus-N301-finite_at_extremes": "failed",
        "kustom-check their_parts.py::right_softplus-N301-finite_at_extremes": "passed",
    }
    text = reports["kustom-check their_parts.py::overflowing_softplus-N301-finite_at_extremes"][1]
    assert "the result is inf at 100" in text
    assert "Traceback" not in text


def test_an_option_for_what_there_is_not_is_a_usage_error(run, capsys):
    assert run("--kustom-check", "no_module_of_this_name")[0] == 4
    assert "no_module_of_this_name" in capsys.readouterr().err


def test_the_plugin_imports_neither_keras_nor_kustom_until_it_is_used(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    code = (
        "import sys, pytest; status = pytest.main(['-q', '-p', 'pytest_kustom', '-p', 'no:cacheprovider', '.']);"
        "print([name for name in ('keras', 'kustom', 'numpy') if name in sys.modules], int(status))"
    )
    source = str(Path(kustom.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.slow
def test_several_workers_share_the_checks(tmp_path):
    (tmp_path / "test_my_parts.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_kustom", "-n", "2", "-p", "no:cacheprovider", "test_my_parts.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 3 passed, 1 xfailed, 1 xpassed" in done.stdout
