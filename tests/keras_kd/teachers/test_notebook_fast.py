"""The notebook on the teacher cache runs from top to bottom and keeps its promises."""

import notebooks
import pytest


@pytest.mark.slow
def test_it_runs_and_the_cached_student_is_as_good_in_a_fraction_of_the_time(tmp_path):
    printed = notebooks.run("03_distill_fast.ipynb", tmp_path).figures()
    assert printed["teacher"] > 94
    # A thousand test images: one standard deviation of a difference is about one point.
    assert printed["cached"] > printed["live"] - 2.0
    # A ratio of two trainings in one process, and far from the limit: about 0.4.
    assert printed["time of the cached training by that of the live one"] < 0.8
