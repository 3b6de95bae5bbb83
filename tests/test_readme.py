"""What a newcomer types first: the page "Get started", block after block and command after command."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GET_STARTED = ROOT / "docs" / "get_started.md"


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def run(arguments: list[str], folder: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_code_and_commands_run(tmp_path: pathlib.Path):
    run(["-c", "\n".join(blocks(GET_STARTED, "python"))], tmp_path)
    for name in (
        "student.keras",
        "student.tflite",
        "firmware/model.h",
        "firmware/model.cc",
        "out/report.html",
    ):
        assert (tmp_path / name).stat().st_size > 0, name

    lines = "\n".join(blocks(GET_STARTED, "bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m")]
    assert len(commands) >= 4
    for command in commands:
        run(command[1:], tmp_path)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"student.keras", "student.tflite", "report.html", "report.json", "model.h", "model.cc"} <= written


def test_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in (README, GET_STARTED):
        asked = set(re.findall(r"^make ([\w-]+)", "\n".join(blocks(page, "bash")), flags=re.M))
        assert {"demo", "test"} <= asked
        assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in asked)


def test_the_example_stays_short():
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
