"""The README's code runs, block after block, as a newcomer would type it."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_code_and_commands_run(tmp_path: pathlib.Path):
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in (
        "student.keras",
        "student.tflite",
        "firmware/model.h",
        "firmware/model.cc",
        "out/report.html",
    ):
        assert (tmp_path / name).stat().st_size > 0, name

    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m")]
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"student.keras", "student.tflite", "report.html", "report.json", "model.h", "model.cc"} <= written


def test_make_commands_exist():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    asked = set(re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), flags=re.M))
    assert asked == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in asked)
