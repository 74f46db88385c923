"""What the tests share: a trip through a file, tensors with a mask, and what of them `make test` runs on which backend."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Many tests compile the same small programs, and most of their time is XLA's: each is compiled once a run, for the
# processes that tests start, too. Read by JAX when it is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.mkdtemp(prefix="kustom-tests-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np
import pytest

from kustom.backends.keras import set_keras_mask

# And it is compiled fast, since it runs for a moment: XLA's optimizations are left to `make test-all`.
_HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A run in the background ignores Ctrl-C, which some tests press.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On JAX and TensorFlow each model is compiled anew. So that `make test` stays within its minutes, some of the work is done
# there by `make test-all` alone, while torch does it each time: these, and of a test with many cases all but a part.
LONG = (
    "backends/test_choose.py::test_only_one_backend_need_be_installed",
    "checking/test_check.py::test_a_copy_that_holds_the_layers_of_the_part_is_none",
    "checking/test_check.py::test_a_layer_of_which_no_other_can_be_made_keeps_its_policy",
    "checking/test_notebook.py",
    "checking/test_reported.py",
    "checking/test_textbook_is_clean.py",
    "defining/test_naming.py::test_a_module_run_by_name_counts_under_its_name",
    "defining/test_naming.py::test_a_notebook_counts_under_main",
    "defining/test_naming.py::test_a_script_counts_under_its_files_stem",
    "defining/test_naming.py::test_parts_of_a_function_pickle_where_they_are_registered",
    "docs/test_pages.py::test_the_code_of_a_page_does_what_the_page_says[docs/commands.md]",
    "gradients/test_across_backends.py",
    "gradients/test_numerical.py::test_one_entry_of_a_thousand_is_found",
    "recipes/test_gradients.py",
    "recipes/test_regression.py::test_ctrl_c_saves_what_was_reached",
    "recipes/test_regression.py::test_quiet_prints_nothing_and_a_large_table_gets_the_large_network",
    "recipes/test_runs.py::test_a_run_leaves_a_folder_and_says_how_it_went",
    "recipes/test_training.py",
    "reports/test_gradients.py::test_the_reported_critic_has_its_number_on_every_backend",
    "roundtrip/test_roundtrip.py",
    "saving/test_fuzzed_files.py",
    "test_architecture.py::test_kustom_imports_no_backend_but_the_one_in_use",
    "test_in_keras.py::test_quantize",
    "training/test_accumulation.py",
    "training/test_branches.py",
    "training/test_function.py::TestGrowth",
    "training/test_function_state.py",
    "training/test_loop.py::test_the_mean_does_not_depend_on_how_many_batches_a_call_has[eager]",
    "training/test_loop_sources.py::test_a_loop_dies_with_its_owner",
    "training/test_loop_sources.py::test_many_models_in_a_row_leave_no_more_variables_than_one",
    "training/test_model.py",
    "training/test_textbook_loop.py::test_the_next_backend_reaches_the_same_loss",
    "saving/test_slots.py::test_text_that_keras_looks_up_in_a_setting_is_judged",
)
# One run of the main job, which they share.
_OF_ONE_RUN = (
    "recipes/test_regression.py::test_a_model_that_predicts_otherwise_does_not_pass",
    "recipes/test_regression.py::test_a_run_leaves_a_complete_folder",
    "recipes/test_regression.py::test_a_run_says_what_it_did",
    "recipes/test_regression.py::test_the_configuration_says_how_and_with_what",
    "recipes/test_regression.py::test_the_errors_reported_are_those_of_the_predictions_recorded",
)
LONG_ON = {
    "jax": (
        *_OF_ONE_RUN,
        "checking/test_plot.py::test_a_kink_is_found_and_is_no_jump",
        "checking/test_plot.py::test_each_kind_has_its_picture",
        "checking/test_plot.py::test_findings_are_written_below_and_marked_at_their_input",
        "docs/test_pages.py::test_the_code_of_a_page_does_what_the_page_says[docs/guide/08-gradients.md]",
        "gradients/test_compositions.py::test_compositions",
        "gradients/test_layers.py::test_the_gradients_in_float32_are_the_backends_own",
        "reports/test_gradients.py::test_a_penalty_through_a_normalization_agrees_with_differences",
    ),
    "tensorflow": (
        *_OF_ONE_RUN,
        "gradients/test_compositions.py::test_compositions",
    ),
    "torch": (
        "roundtrip/test_roundtrip.py::test_a_new_process_on_another_backend[keras]",
        "roundtrip/test_roundtrip.py::test_a_new_process_on_the_same_backend[kustom]",
    ),
}
FEW = 2
# All cases of these: the control group's fixed thirty.
WHOLE = ("checking/test_control.py",)


def pytest_configure(config: pytest.Config) -> None:
    # Read by XLA when it compiles for the first time.
    if config.option.markexpr and "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = _HASTY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    backend = keras.backend.backend()
    if backend == "torch":
        for item in items:
            if item.nodeid.removeprefix("tests/").startswith(LONG_ON[backend]):
                item.add_marker(pytest.mark.slow)
        return
    long = LONG + LONG_ON[backend]
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None and not item.nodeid.removeprefix("tests/").startswith(WHOLE):
            cases[item.nodeid.partition("[")[0]].append(item)
    for some in cases.values():
        short = [item for item in some if not item.nodeid.removeprefix("tests/").startswith(long)]
        # The same ones each time, whatever stands before them, and in each worker.
        chosen = sorted(short, key=lambda item: zlib.crc32(item.nodeid.encode()))[: max(FEW, -(-len(some) // 10))]
        for item in some:
            if item not in chosen:
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def trip(tmp_path: Path) -> Callable[[Any], Any]:
    """Save a model with Keras, load it with Keras."""

    def go(model: Any) -> Any:
        path = tmp_path / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)

    return go


@pytest.fixture
def masked() -> Callable[[Any, Any], Any]:
    """A tensor that carries a mask, as a layer's output does."""

    def go(x: Any, mask: Any) -> Any:
        x = keras.ops.convert_to_tensor(np.asarray(x, "float32"))
        set_keras_mask(x, keras.ops.convert_to_tensor(np.asarray(mask)))
        return x

    return go


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)
