"""What must never happen in silence, and which test holds which line of it; a test here where there was none elsewhere.

Each test runs on each backend. The last test of this file sees to it that those named are there.

| what is to hold | the tests |
| --- | --- |
| every batch that a source gives is trained on once, whatever the source | training/test_loop_sources.py::test_each_batch_is_trained_on_once_each_epoch, training/test_streams.py::test_every_source_gives_every_batch_once, training/test_data.py::test_each_row_comes_once_an_epoch |
| and whatever its length | training/test_loop.py::test_every_batch_is_trained_on_once, training/test_data.py::test_epochs_of_steps_are_cut_from_whole_passes, reports/test_steps.py::test_13b_more_a_smaller_last_batch_is_one_step |
| nothing is drawn only to build | training/test_streams.py::test_nothing_is_drawn_before_it_is_asked_for, reports/test_steps.py::test_13_no_batch_is_eaten |
| nothing runs after the end | training/test_never_in_silence.py::test_nothing_runs_after_the_end, reports/test_steps.py::test_13b_no_ghost_step_at_the_end |
| statistics go on | training/test_function_state.py::test_batch_normalization, training/test_function_state.py::test_spectral_normalization |
| seeds go on | training/test_function_state.py::test_seed_generators_go_on, training/test_never_in_silence.py::test_seeds_and_counters_go_on_from_run_to_run |
| counters and both optimizers go on | training/test_never_in_silence.py::test_seeds_and_counters_go_on_from_run_to_run, training/test_several_optimizers.py::test_two_in_one_step_each_with_its_own_count |
| what a callback, a user or a loader assigns is used by the next step, and what they read is fresh | training/test_never_in_silence.py::test_a_callback_reads_what_is_and_the_next_step_uses_what_it_assigns, training/test_loop.py::test_what_is_assigned_between_epochs_is_used, training/test_function_failures.py::test_what_is_assigned_is_used_and_what_is_read_is_fresh |
| Python state that changes later is noticed | training/test_loop.py::test_python_state_that_changes_is_noticed, training/test_watching.py::test_a_closure_cell, training/test_watching.py::test_globals_that_the_function_names, training/test_watching.py::test_attributes_of_keras_objects_and_of_others |
| scalars are weighted by samples | training/test_loop.py::test_what_the_step_returns_is_averaged_by_samples, reports/test_steps.py::test_24_what_a_step_returns_is_averaged_over_the_samples |
| whatever the length of a chunk | training/test_loop.py::test_the_mean_does_not_depend_on_how_many_batches_a_call_has |
| under the names given | training/test_loop.py::test_metrics_are_reset_each_epoch_and_reported_under_the_names_given |
| validation in mid-epoch leaves the training's metrics alone | training/test_loop.py::test_validation_in_the_middle_of_an_epoch_leaves_the_metrics_alone |
| a value stands at the epoch in which it was measured | training/test_history.py::test_validation_stands_in_the_row_of_its_epoch |
| each of several optimizers has its own count | training/test_several_optimizers.py::test_two_in_one_step_each_with_its_own_count, reports/test_steps.py::test_01_two_optimizers_in_one_step |
| an overflow step does not count | training/test_function_state.py::test_an_overflow_skips_the_step_and_lowers_the_scale, reports/test_optimizers.py::test_06_an_overflow_is_left_out_and_not_counted |
| unscaling cannot be forgotten | reports/test_optimizers.py::test_06_a_scale_that_is_forgotten_is_an_error |
| accumulated batches are updates | training/test_accumulation.py::test_all_that_an_optimizer_keeps_is_as_with_the_large_batch, training/test_accumulation.py::test_a_run_that_is_cut_short_leaves_nothing_to_the_next |
| the list of trained variables that the step names is read at each call | training/test_never_in_silence.py::test_the_list_that_the_step_names_is_read_at_each_call |
| `trainable` flipped between calls takes effect or is refused | training/test_loop.py::test_trainable_that_is_flipped_takes_effect, training/test_several_optimizers.py::test_a_layer_is_frozen_between_runs_and_by_a_callback, training/test_several_optimizers.py::test_a_layer_that_is_frozen_under_a_multi_optimizer_is_refused, training/test_several_optimizers.py::test_a_layer_that_was_frozen_when_the_optimizer_was_built |
| a rate is set where it is applied, or that is refused | training/test_callbacks.py::test_the_steps_optimizer_is_lent_to_the_model_and_taken_back, training/test_callbacks.py::test_a_schedule_of_the_rate_where_several_optimizers_are_applied_is_refused |
| the user's exception comes through unchanged, and training may go on | training/test_callbacks.py::test_an_exception_of_a_callback_comes_through_and_training_may_go_on, training/test_streams.py::test_the_users_exception_comes_through_after_the_batches_before_it |
| after it rule 8 holds | training/test_loop.py::test_an_exception_of_the_step_comes_through_and_changes_nothing, training/test_rules_of_lifting.py::test_rule_8_a_failure_changes_nothing, training/test_raising.py::test_a_value_that_a_kernel_refuses |
| also after Ctrl-C | training/test_callbacks.py::test_ctrl_c_leaves_whole_steps_and_training_may_go_on, training/test_function_failures.py::test_ctrl_c_leaves_the_variables_consistent |
| no variable or attribute holds a tracer | training/test_function_failures.py::test_no_attribute_keeps_a_tracer, training/test_function_failures.py::test_a_tracer_is_put_back_after_an_error_too, training/test_never_in_silence.py::test_after_an_error_in_the_trace_of_a_run_every_variable_has_a_value |
| a loop and its traces die with their owner | training/test_loop_sources.py::test_a_loop_dies_with_its_owner, training/test_function.py::test_a_function_dies_with_its_owner |
| models in a row need the memory of one | training/test_loop_sources.py::test_many_models_in_a_row_leave_no_more_variables_than_one, training/test_function.py::test_many_models_need_the_memory_of_one |
| one trace a shape | training/test_function.py::test_a_shape_a_trace, training/test_loop.py::test_a_second_fit_traces_nothing |
| none for a number | training/test_function.py::test_numbers_are_no_new_trace, reports/test_compiled_functions.py::test_a_number_that_changes_at_each_step_is_no_trace |
"""  # noqa: E501

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kustom

X = np.random.default_rng(0).normal(size=(44, 3)).astype("float32")


def number(variable):
    return float(ops.convert_to_numpy(variable.value))


def adding(variable):
    def step(x):
        variable.assign_add(1)

    return step


@pytest.mark.parametrize("execution", ["loop", "step", "eager"])
def test_nothing_runs_after_the_end(execution):
    count, drawn = keras.Variable(0, dtype="int32", trainable=False), []

    def stream():
        while True:
            drawn.append(1)
            yield X[:4]

    loop = kustom.Loop(adding(count))
    loop.fit(stream(), steps_per_epoch=3, epochs=2, verbose=0, execution=execution)
    assert (int(number(count)), len(drawn)) == (6, 6)


@pytest.mark.parametrize("execution", ["loop", "step", "eager"])
def test_seeds_and_counters_go_on_from_run_to_run(execution):
    def runs(epochs):
        seeds, drawn = keras.random.SeedGenerator(3), keras.Variable(0.0, trainable=False)
        parts = [(keras.optimizers.Adam(0.1), keras.Variable([1.0])), (keras.optimizers.SGD(0.1), keras.Variable([1.0]))]

        def step(x):
            drawn.assign_add(keras.random.uniform((), seed=seeds))
            for optimizer, variable in parts:
                optimizer.apply([ops.ones((1,)) * ops.mean(x)], [variable])

        loop = kustom.Loop(step)
        for each in epochs:
            loop.fit(X, batch_size=4, epochs=each, shuffle=False, verbose=0, execution=execution)
        counts = [int(number(optimizer.iterations)) for optimizer, _ in parts]
        return number(drawn), ops.convert_to_numpy(seeds.state.value).tolist(), counts

    (one, state, counts), (other, other_state, other_counts) = runs([2]), runs([1, 1])
    assert other == pytest.approx(one, rel=1e-6)
    assert 0 < one < 22
    assert other_state == state
    assert other_counts == counts == [22, 22]


@pytest.mark.parametrize("execution", ["loop", "step", "eager"])
def test_a_callback_reads_what_is_and_the_next_step_uses_what_it_assigns(execution):
    total = keras.Variable(0.0, trainable=False)
    read = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read.append(number(total))
            if batch == 4:
                total.assign(100.0)

    kustom.Loop(adding(total)).fit(X, batch_size=4, callbacks=[Look()], verbose=0, execution=execution)
    assert read == [1.0, 2.0, 3.0, 4.0, 5.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0]
    assert number(total) == 106.0


@pytest.mark.parametrize("execution", ["loop", "eager"])
def test_the_list_that_the_step_names_is_read_at_each_call(execution):
    first, second = keras.Variable([1.0]), keras.Variable([1.0])
    trained = [first, second]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([first, second])

    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.sum(first + second) + 0 * ops.mean(x)
        optimizer.apply(tape.gradient(loss, trained), trained)

    loop = kustom.Loop(step)
    options = {"batch_size": 44, "verbose": 0, "execution": execution}
    loop.fit(X, **options)
    trained.remove(first)
    loop.fit(X, **options)
    trained[:] = [first]
    loop.fit(X, **options)
    moved = [float(ops.convert_to_numpy(v.value)[0]) for v in (first, second)]
    assert moved == pytest.approx([0.8, 0.8])
    trained[:] = [second]
    loop.fit(X, **options)
    assert float(ops.convert_to_numpy(second.value)[0]) == pytest.approx(0.7)


def test_after_an_error_in_the_trace_of_a_run_every_variable_has_a_value():
    model, optimizer, metric = keras.Sequential([keras.layers.Dense(1)]), keras.optimizers.Adam(0.1), keras.metrics.Mean()
    fails = [True]

    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        metric.update_state(loss)
        if fails:
            raise LookupError("of the user")
        return {"loss": loss}

    loop = kustom.Loop(step)
    with pytest.raises(LookupError, match="of the user"):
        loop.fit(X, batch_size=4, verbose=0)
    for variable in (*model.variables, *optimizer.variables, *metric.variables):
        assert np.all(np.isfinite(ops.convert_to_numpy(variable.value)))
    assert int(number(optimizer.iterations)) == 0
    fails.clear()
    loop.fit(X, batch_size=4, verbose=0)
    assert int(number(optimizer.iterations)) == 11


def test_the_tests_of_the_table_are_there():
    folder = Path(__file__).parent.parent
    rows = [line for line in (__doc__ or "").splitlines() if line.startswith("| ") and "::" in line]
    named = [re.findall(r"([\w/]+\.py)::(\w+)", row) for row in rows]
    assert len(rows) > 25
    for file, name in itertools.chain(*named):
        made = ast.walk(ast.parse((folder / file).read_text(encoding="utf-8")))
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in made), f"{file}::{name}"
