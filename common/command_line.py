"""The command line as tyro reads it, with what is wrong with it in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from common.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def option(name: str) -> str:
    """Returns how a setting is written on a command line."""
    return "--" + name.replace("_", "-")


# tyro hands over what is wrong with a command line, rather than only drawing it, through a hook that is not public yet.
# With a tyro that lacks the hook, the user sees tyro's own framed message; the exit status is 2 all the same.
_on_parse_error: Callable[[Callable[[Any], None]], contextlib.AbstractContextManager[None]] = getattr(
    getattr(tyro, "_errors", None), "on_parse_error", lambda hook: contextlib.nullcontext()
)


def read(options_class: type[Options], argv: Sequence[str], default: Any = tyro.MISSING_NONPROP) -> Options:
    """Returns tyro's reading of `argv` over `default`.

    Raises:
        UsageError: tyro refuses the command line.
    """
    if {"-h", "--help"} & set(argv):
        os.environ.setdefault("COLUMNS", "110")
    known = [option(field.name) for field in dataclasses.fields(options_class)]

    def refuse(event: Any) -> None:
        raise UsageError(f"{_what_is_wrong(event, known)}; see --help")

    started_as = getattr(sys.modules["__main__"], "__spec__", None)  # None for a script, a module's for python -m
    prog = f"python -m {started_as.name.removesuffix('.__main__')}" if started_as is not None else None
    with _on_parse_error(refuse):
        options: Options = tyro.cli(options_class, prog=prog, args=list(argv), default=default)
    return options


def _what_is_wrong(event: Any, known: Sequence[str]) -> str:
    """Returns one of tyro's parse errors (`tyro._errors.ParseErrorEvent`) in one line."""
    kind = type(event).__name__
    if kind == "UnrecognizedArgs":
        close = [match for token in event.tokens for match in difflib.get_close_matches(token, known, 1)]
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        return f"unrecognized options: {' '.join(event.tokens)}{hint}"
    if kind == "MissingArgs":
        return "missing: " + ", ".join(missing.arg.lowered.metavar or "" for missing in event.missing_arguments)
    argument = getattr(event, "argument", None)
    if argument is None:
        return "the command line makes no sense"
    name, expected = "/".join(argument.lowered.name_or_flags), argument.lowered.metavar
    match kind:
        case "InvalidChoice":
            return f"{name} {event.value}: choose one of {', '.join(event.choices)}"
        case "BadValue":
            return f"{name}: a value is missing (expected {name} {expected})"
        case _:
            said = event.message.splitlines()[0].rstrip(" .")
            said = re.sub(r"no type matching .*", "does not fit", said)  # Python's words for a value of the wrong type
            said = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", said)
            said = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", said)
            return f"{name}: {said} (expected {name} {expected})"
