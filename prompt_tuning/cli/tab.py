"""What may follow on a command line, asked by the shell when somebody presses TAB.

The script of `prompt-tuning completion` runs `prompt-tuning` with the line so far in its
environment: argcomplete's protocol. The flags are those of the command's own parser, so that
nothing is listed twice. Nothing heavy may be imported: a late answer is none.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import argcomplete
from argcomplete import lexers

from prompt_tuning.cli.configuration import gin_files
from prompt_tuning.errors import ConfigError

GIN = "--gin."


def complete(commands: Mapping[str, Any]) -> None:
    """Prints what may follow and ends the process.

    Args:
        commands: the table of `prompt_tuning.__main__`.
    """
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    _, _, _, (_program, *words), _ = lexers.split_line(line, point)
    parser = _parser_at(commands, words)
    # The words that lead to this parser are its name, and no business of argcomplete's.
    os.environ["_ARGCOMPLETE"] = str(len(parser.prog.split()))
    positionals = [action for action in parser._actions if not action.option_strings]
    for action in parser._actions:
        if completer := COMPLETERS.get(action.dest) or COMPLETERS.get(str(action.metavar)):
            action.completer = completer  # type: ignore[attr-defined]
    Finder()(parser, always_complete_options=not positionals, default_completer=_nothing)


class Finder(argcomplete.CompletionFinder):
    """Adds `--gin.NAME=`, which no parser knows, and the `=` of every flag that takes a value."""

    def collect_completions(
        self,
        active_parsers: list[argparse.ArgumentParser],
        parsed_args: argparse.Namespace,
        cword_prefix: str,
    ) -> list[str]:
        found = super().collect_completions(active_parsers, parsed_args, cword_prefix)
        actions = active_parsers[-1]._actions
        valued = {flag for one in actions if one.nargs is None for flag in one.option_strings}
        completions = {
            f"{one}=" if one in valued else one: self._display_completions.get(one, "")
            for one in found
        }
        takes_gin = any(action.dest == "gin_file" for action in actions)
        if takes_gin and "=" not in cword_prefix:
            completions |= {
                name: about
                for name, about in _gin_names(cword_prefix, parsed_args).items()
                if name.startswith(cword_prefix)
            }
        self._display_completions = completions
        return list(completions)


def _gin_names(prefix: str, parsed: argparse.Namespace) -> dict[str, str]:
    if not prefix.startswith(GIN):
        # All macros at once would bury the other flags.
        return {GIN: "NAME=VALUE, sets a macro or parameter"} if prefix.startswith("-") else {}
    found = gin_files.macros(getattr(parsed, "gin_file", ()), _search_paths(parsed))
    return {f"{GIN}{name}=": f"now {value}" for name, value in found.items()}


def _search_paths(parsed: argparse.Namespace) -> list[str]:
    return [".", *getattr(parsed, "gin_search_paths", ()), str(gin_files.package_root())]


def _parser_at(commands: Mapping[str, Any], words: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser of what stands at the cursor: of commands, of actions or of flags."""
    first = words[0] if words else None
    if first is None:
        parser = _names("prompt-tuning", {name: one.about for name, one in commands.items()})
        for flag in ("--help", "--version"):
            parser.add_argument(flag, action="store_true")
        return parser
    program = f"prompt-tuning {first}"
    if first not in commands:
        return argparse.ArgumentParser(prog=program, add_help=False)
    command = commands[first]
    if command.actions and len(words) == 1:
        return _names(program, dict(command.actions))
    action = words[1:2] if command.actions else []
    return _parser_of(command.parse, program, action)


def _names(program: str, about: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, add_help=False)
    parser.add_argument("name").completer = lambda **_: about  # type: ignore[attr-defined]
    return parser


class _Reached(BaseException):
    """Ends a command's parsing at the parser."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def _parser_of(
    parse: Callable[..., Any], program: str, words: Sequence[str]
) -> argparse.ArgumentParser:
    """Returns the parser with which a command reads its flags.

    Commands make it where they use it, so that is where this one is stopped.
    """

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Reached(parser)

    # Either may be called; from Python 3.12 on the second does not come past the first.
    names = ("parse_known_args", "parse_known_intermixed_args")
    untouched = {name: getattr(argparse.ArgumentParser, name) for name in names}
    for name in names:
        setattr(argparse.ArgumentParser, name, stop)
    try:
        parse(program, "", list(words))
    except _Reached as reached:
        return reached.parser
    except ConfigError:  # an action that there is not
        pass
    finally:
        for name, method in untouched.items():
            setattr(argparse.ArgumentParser, name, method)
    return argparse.ArgumentParser(prog=program, add_help=False)


def _nothing(**_: object) -> Iterable[str]:
    return ()


def _gin_files(prefix: str, parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    return gin_files.next_names(prefix, _search_paths(parsed_args))


def _macros(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    return gin_files.macros(parsed_args.gin_file, _search_paths(parsed_args))


def _files(prefix: str, **_: object) -> Iterable[str]:
    front = prefix[: len(prefix) - len(os.path.basename(prefix))]
    for entry in gin_files.entries(os.path.expanduser(front) or "."):
        if not entry.name.startswith(".") or os.path.basename(prefix).startswith("."):
            yield f"{front}{entry.name}{'/' if entry.is_dir() else ''}"


def _folders(prefix: str, **_: object) -> Iterable[str]:
    before, comma, last = prefix.rpartition(",")
    return (f"{before}{comma}{name}" for name in _files(last) if name.endswith("/"))


# By a flag's name, or the word that its help has for its value.
COMPLETERS: Mapping[str, Callable[..., Iterable[str]]] = {
    "gin_file": _gin_files,
    "names": _macros,  # of `config explain`
    "a": _files,
    "b": _files,
    "FILE": _files,
    "PATH": _files,
    "DIR": _folders,
    "MODEL_DIR": _folders,
    "DIR,DIR": _folders,
    "true|false": lambda **_: ("true", "false"),
}
