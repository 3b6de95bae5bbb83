"""A Griffe extension: the project's docstring form, as the site's Google-style parser knows it."""

import re
from typing import Any

import griffe

# Our docstrings say "Example:" above a doctest; the parser calls that section "Examples:" and would take
# the singular for a boxed remark, in which Markdown eats the brackets of the code.
_EXAMPLE = re.compile(r"^Example:\s*$", flags=re.M)
# "counts [true class][predicted class]" is no link. Lines of a doctest are left alone.
_BRACKETS = re.compile(r"^(?! *(?:>>>|\.\.\.)).*?(?:\[[a-z]+(?: [a-z]+)?\]){2,}", flags=re.M)
_PAIR = re.compile(r"(?:\[[a-z]+(?: [a-z]+)?\]){2,}$")
# One line at the end of the docstring. Left as it is, it would run on behind the paragraph before it.
_SOURCE = re.compile(r"^Source: ", flags=re.M)


class ProjectDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed; the source files are not touched."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            text = _BRACKETS.sub(lambda match: _PAIR.sub(r"`\g<0>`", match.group()), text)
            obj.docstring.value = _SOURCE.sub("**Source:** ", text)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """`Any` tells a reader nothing; the description beside it says what fits. Private arguments are not shown."""
        shown = [parameter for parameter in func.parameters if not parameter.name.startswith("_")]
        for parameter in shown:
            if str(parameter.annotation) == "Any":
                parameter.annotation = None
        func.parameters = griffe.Parameters(*shown)
