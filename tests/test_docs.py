"""The documentation: its Python code runs, its commands exist, and its API pages name everything public.

The blocks of a page run from top to bottom in one namespace. Comments that the built site does not show steer that:

- `<!-- setup: NAME -->`: begin with what the function NAME of docs_setup.py returns;
- `<!-- raises: ERROR -->`, right before a block: the block has to end with this exception;
- `<!-- not run: WHY -->`, right before a block: it is read only, and the arguments of its calls are checked;
- `<!-- slow -->`: the page runs with the slow tests only.

A ```text block right behind a block of code is what the code has to print.
"""

import ast
import contextlib
import importlib
import inspect
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import docs_setup
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- (?:raises: (?P<error>\w+)|(?P<idle>not run: .+?)) -->\n+)?"
    r"(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    flags=re.M | re.S,
)


PRINTED = re.compile(r"```\n\n```text\n(.*?)^```", flags=re.M | re.S)


class Block(NamedTuple):
    line: int
    code: str
    error: str | None = None
    printed: str | None = None
    runs: bool = True


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        indent = len(match["indent"])
        code = "\n".join(row[indent:] for row in match["code"].splitlines())
        printed = PRINTED.match(text, match.end() - 3)
        yield Block(line, code, match["error"], printed[1] if printed else None, match["idle"] is None)


def check_calls(code: str) -> None:
    """The names of `keras_kd` and `tflite_tools` in the code exist, and take the arguments that it gives them."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            package, *names = ast.unparse(node.func).split(".")
            if package in ("keras_kd", "tflite_tools"):
                called = importlib.import_module(package)
                for name in names:
                    if not hasattr(called, name):  # a module that nobody has imported yet
                        importlib.import_module(f"{called.__name__}.{name}")
                    called = getattr(called, name)
                given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                inspect.signature(called).bind(*node.args, **given)


def pages_with_code() -> list[Any]:
    found = []
    for page in PAGES:
        if page == "docs/get_started.md":  # as a whole, in test_readme.py
            continue
        text = (ROOT / page).read_text(encoding="utf-8")
        if any(blocks(text)):
            found.append(pytest.param(page, marks=[pytest.mark.slow] if "<!-- slow -->" in text else []))
    return found


@pytest.mark.parametrize("page", pages_with_code())
def test_the_code_of_a_page_runs(page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = (ROOT / page).read_text(encoding="utf-8")
    setup = re.search(r"<!-- setup: (\w+) -->", text)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    if setup:
        namespace.update(getattr(docs_setup, setup[1])())
    for line, code, error, printed, runs in blocks(text):
        if not runs:
            check_calls(code)
            continue
        # Line breaks in front, so that a traceback shows the page's own line.
        program = compile("\n" * (line - 1) + code, str(ROOT / page), "exec")
        if error is None:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(program, namespace)
            assert printed is None or output.getvalue() == printed, f"{page}:{line}"
            continue
        with pytest.raises(Exception) as caught:
            exec(program, namespace)
        names = [kind.__name__ for kind in type(caught.value).__mro__]
        assert error in names, f"{page}:{line} raised {names[0]}: {caught.value}"


def test_blocks_are_found_where_they_stand():
    text = "a\n```python\nx = 1\n```\n\n```text\n1\n```\n\n<!-- raises: ValueError -->\n```python\ny\n```\n"
    text += "- b\n\n    ```python\n    z\n    ```\n"
    assert list(blocks(text)) == [
        Block(3, "x = 1", printed="1\n"),
        Block(12, "y", "ValueError"),
        Block(17, "z"),
    ]


def test_arguments_of_blocks_that_are_not_run_are_checked():
    check_calls("keras_kd.compress(student, 'int8', x, epochs=3)")
    with pytest.raises(TypeError, match="epoch_s"):
        check_calls("tflite_tools.benchmark(file, target='host')\ntflite_tools.convert(model, epoch_s=3)")
    with pytest.raises(ModuleNotFoundError, match="compres"):
        check_calls("keras_kd.compres(student)")


def test_every_public_name_has_its_place_in_the_api_pages():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", pages, flags=re.M))
    for members in re.findall(r"members: \[(.*?)\]", pages, flags=re.S):
        shown.update(name.strip() for name in members.split(","))
    shown |= {name.rpartition(".")[2] for name in shown}
    modules = {"losses", "schedules", "selection", "callbacks", "__version__"}
    for package in ("keras_kd", "keras_kd.losses", "keras_kd.selection", "tflite_tools"):
        missing = set(importlib.import_module(package).__all__) - shown - modules
        assert not missing, f"docs/api/ lacks {sorted(missing)} of {package}"
    schedules = importlib.import_module("keras_kd.schedules")
    kinds = [value for value in vars(schedules).values() if isinstance(value, type)]
    named = {kind.__name__ for kind in kinds if issubclass(kind, schedules.Schedule)}
    missing = {name for name in named if not name.startswith("_")} - shown
    assert not missing, f"docs/api/ lacks {sorted(missing)} of keras_kd.schedules"


def test_the_page_of_commands_names_them_all():
    page = (DOCS / "api" / "command_line.md").read_text(encoding="utf-8")
    chain = (ROOT / "keras_kd" / "cli.py").read_text(encoding="utf-8")
    flags = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", chain))
    shown = {flag.removeprefix("no") for flag in re.findall(r"^\| `--(\w+)`", page, flags=re.M)}
    assert flags and shown == flags
    tools = (ROOT / "tflite_tools" / "cli.py").read_text(encoding="utf-8")
    commands = re.findall(r"^    \"(\w+)\": _Command\(", tools, flags=re.M)
    assert commands and re.findall(r"^\| `(\w+)`", page, flags=re.M) == commands


def command_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^ *python -m ((?:keras_kd|tflite_tools)\b.*)", text, flags=re.M)
        found += [(page, line) for line in lines]
    return found


def test_commands_have_the_flags_that_the_pages_give():
    # The sources rather than --help, which needs a process for each command.
    sources = {
        package: "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.py"))
        for package in ("keras_kd", "tflite_tools")
    }
    defined = {
        package: set(re.findall(r"\bDEFINE_\w+\(\s*\"(\w+)\"|\bflag\w*\(\s*\"(\w+)\"", source))
        for package, source in sources.items()
    }
    known = {package: {name for pair in pairs for name in pair if name} for package, pairs in defined.items()}
    assert all(len(names) > 10 for names in known.values())
    assert command_lines()
    for page, line in command_lines():
        package = line.split(".")[0].split()[0]
        for flag in re.findall(r"--(?:no)?([\w]+)", line):
            assert flag in known[package] or f"no{flag}" in known[package], (
                f"{page}: {line}: no flag --{flag}"
            )


def test_pictures_and_results_of_the_pages_exist():
    """Local links, in README too: mkdocs checks those of the site, and nothing else checks README's."""
    for path in [ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_site_loads_nothing_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  font: false", settings, re.M)
    assert "extra_javascript" not in settings and "http" not in settings
