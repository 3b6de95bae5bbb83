"""The notebook on distillation runs from top to bottom and keeps its promises."""

import notebooks
import pytest


@pytest.mark.slow
def test_it_runs_and_the_student_under_the_teacher_is_not_worse(tmp_path):
    outcome = notebooks.run("01_distill_in_a_notebook.ipynb", tmp_path)
    printed = outcome.figures()
    assert outcome.pictures == 3
    assert printed["teacher"] > 94
    # A thousand test images: one standard deviation is 0.75 points.
    assert printed["student distilled"] > printed["student alone"] - 0.75
