"""A schedule always reaches its last update within the run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_kd.compression.schedule import PruningSteps, pruning_steps


@given(st.integers(1, 100_000), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_the_last_update_falls_on_the_end_and_inside_the_run(total, span):
    steps = pruning_steps(total, *span)
    updates = range(steps.begin, steps.end + 1, steps.frequency)
    assert 1 <= steps.begin <= steps.end <= total
    assert updates[-1] == steps.end
    assert steps.updates == len(updates) <= 101
    # Rounding to whole updates moves the end by less than one of them.
    assert (
        steps.end > min(max(1, round(span[1] * total)), total) - steps.frequency or steps.end == steps.begin
    )


def test_sparsity_follows_the_cubic_ramp():
    steps = PruningSteps(begin=10, end=110, frequency=10)
    # Zhu and Gupta, equation 1, halfway: 0.8 * (1 - 0.5 ** 3).
    assert steps.sparsity_at(60, 0.8) == pytest.approx(0.7)
    assert (steps.sparsity_at(9, 0.8), steps.sparsity_at(110, 0.8)) == (0.0, 0.8)


def test_a_run_without_steps_is_refused():
    with pytest.raises(ValueError, match="total_steps=0"):
        pruning_steps(0, 0.0, 0.6)
