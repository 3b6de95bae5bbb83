"""The notebook on compression runs from top to bottom and keeps its promises."""

import re

import notebooks
import pytest


@pytest.mark.slow
def test_the_compression_notebook_runs_and_keeps_its_promises(tmp_path):
    printed, pictures = notebooks.run("02_compress.ipynb", tmp_path)
    assert pictures == 3
    files = re.findall(r"^ *(\S.*): ([\d.]+)%, +([\d,]+) bytes, +([\d,]+) gzipped$", printed, re.M)
    accuracy, size, gzipped = (
        [float(part.replace(",", "")) for part in column] for column in list(zip(*files))[1:]
    )
    # A thousand test images: two standard deviations of a difference are about 1.5 points.
    assert accuracy[2] > accuracy[0] - 1.5
    assert size[1] < 0.45 * size[0]
    assert gzipped[2] < 0.7 * gzipped[1]
    agreement = float(re.search(r"agree on ([\d.]+)%", printed).group(1))
    assert agreement >= 99.5
