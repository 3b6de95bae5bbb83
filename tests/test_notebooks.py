"""Every notebook is stored without outputs, and its cells are short enough to be read."""

import notebooks
import pytest

NAMES = sorted(path.name for path in notebooks.EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped_and_cells_are_short(name: str):
    for cell in notebooks.read(name).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert cell.source.count("\n") < 35, cell.source


def test_every_notebook_is_run_by_a_test():
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (notebooks.EXAMPLES.parent / "tests").rglob("test_notebook_*.py")
    )
    assert NAMES
    for name in NAMES:
        assert f'notebooks.run("{name}"' in sources
