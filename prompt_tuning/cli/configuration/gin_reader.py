"""Reads gin files and bindings into statements: gin's own grammar, nothing executed.

gin's `parse_config` executes line by line, so a missing setting would be reported only after every
module is imported, and one at a time. Here the whole configuration is read first;
`prompt_tuning.cli.config` looks at it as a whole and then executes it.
"""

import ast
import dataclasses
import importlib.util
import io
import logging
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from etils import epath
from gin import config_parser
from gin.config_parser import BindingStatement, BlockDeclaration, ImportStatement, IncludeStatement

from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.cli.configuration import t5x_files
from prompt_tuning.errors import ConfigError, nearest

log = logging.getLogger("prompt_tuning")

Statement: TypeAlias = "Source | BindingStatement | BlockDeclaration | ImportStatement"


@dataclasses.dataclass(frozen=True)
class Source:
    """One gin file, or the bindings of the command line (`path` is None).

    An `include` is another `Source` at its place among the statements.
    """

    path: str | None
    statements: tuple[Statement, ...]

    def walk(self) -> Iterator[BindingStatement | BlockDeclaration | ImportStatement]:
        """Yields the statements in the order gin executes them, includes opened."""
        for statement in self.statements:
            if isinstance(statement, Source):
                yield from statement.walk()
            else:
                yield statement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """The files and bindings of one command, read and not executed."""

    files: tuple[Source, ...]
    command_line: Source

    def statements(self) -> Iterator[BindingStatement | BlockDeclaration | ImportStatement]:
        """Yields all statements in the order in which gin executes them; the later wins."""
        for source in (*self.files, self.command_line):
            yield from source.walk()

    def bindings(self) -> Iterator[BindingStatement]:
        """Yields those statements that give a value to a macro or a parameter."""
        return (one for one in self.statements() if isinstance(one, BindingStatement))


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@selector` in a value or, with `evaluate`, `@selector()`."""

    selector: str
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME` in a value; with a dot in its name it is a constant, such as `%gin.REQUIRED`."""

    name: str

    @property
    def is_constant(self) -> bool:
        return "." in self.name


def read_file(name: str, search_paths: Sequence[str]) -> Source:
    """Reads a gin file and its includes; both are looked for in `search_paths`, in that order.

    The last of them is this package's own folder, where the files are that stand for the
    original's. A name that begins with an installed package, `my_package/gin/run.gin`, is found in
    that package, too.

    Raises:
        ConfigError: A file that is not there, that includes itself, or that is not gin.
    """
    return _read_file(name, search_paths, wanted_by="--gin_file", opened=())


def read_bindings(bindings: Iterable[str], search_paths: Sequence[str]) -> Source:
    """Reads the bindings of the command line, each of them gin text.

    Raises:
        ConfigError: One that is not gin, for example text without its inner quotes.
    """
    sources = [_read_text(text, None, search_paths, opened=()) for text in bindings]
    return Source(None, tuple(statement for source in sources for statement in source.statements))


def place(statement: BindingStatement | BlockDeclaration | ImportStatement) -> str:
    """Returns where a statement stands: `file:line`, or the flag that gave it."""
    if statement.location.filename:
        return f"{statement.location.filename}:{statement.location.line_num}"
    if isinstance(statement, BindingStatement):
        # As it was typed, whatever the name is called here.
        typed, equals, _ = statement.location.line_content.partition("=")
        return f"--gin.{typed.strip() if equals else binding_name(statement)}"
    return "--gin_bindings"


def binding_name(statement: BindingStatement) -> str:
    """Returns the left side of a binding; for a macro that is the macro's name."""
    scope = f"{statement.scope}/" if statement.scope else ""
    argument = f".{statement.arg_name}" if statement.arg_name else ""
    return f"{scope}{statement.selector}{argument}"


def setting_of(statement: BindingStatement) -> tuple[str, str, str]:
    """Returns what a binding sets: two spellings of one parameter are told by their last parts.

    More is not known before the modules are imported.
    """
    return statement.scope, statement.selector.rpartition(".")[2], statement.arg_name


def macros_in(value: Any) -> Iterator[Macro]:
    """Yields the macros and constants in a value, in containers too."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, Macro))


def references_in(value: Any) -> Iterator[Reference]:
    """Yields the references in a value, in containers too."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, Reference))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from _leaves([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


class _Placeholders(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def _read_file(
    name: str, search_paths: Sequence[str], wanted_by: str, opened: tuple[str, ...]
) -> Source:
    path = _find(name, search_paths, wanted_by)
    if path in opened:
        raise ConfigError(f"{' includes '.join([*opened, path])}: a file cannot include itself.")
    return _read_text(epath.Path(path).read_text(), path, search_paths, (*opened, path))


def _find(name: str, search_paths: Sequence[str], wanted_by: str) -> str:
    if ours := t5x_files.ours(name):
        log.info("%s: %s is %s here.", wanted_by, name, ours)
        name, search_paths = ours, search_paths[-1:]
    if "://" in name:  # absolute, which joining it to a folder would not see
        folder, _, name = name.rpartition("/")
        search_paths = [folder]
    folders = [epath.Path(folder) for folder in (*search_paths, *_package_folders(name))]
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    # What could have been meant is beside the wanted path or near the top of a search path.
    known = {
        str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
        for folder in folders
        for pattern_root, pattern in (
            (folder, "*.gin"),
            (folder, "*/*.gin"),
            ((folder / name).parent, "*.gin"),
        )
        for file in pattern_root.glob(pattern)
    }
    raise ConfigError(
        f"{wanted_by}: there is no gin file {name!r}.{nearest(name, sorted(known))}"
        f"{t5x_files.advice(name)} Looked in: {', '.join(map(str, folders))}."
    )


def _package_folders(name: str) -> list[str]:
    """Returns the folders that hold the package that a name begins with; it is not imported."""
    package, slash, _ = name.partition("/")
    if not slash or not package.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    locations = spec.submodule_search_locations if spec else None
    return [str(epath.Path(location).parent) for location in locations or ()]


def _read_text(
    text: str, path: str | None, search_paths: Sequence[str], opened: tuple[str, ...]
) -> Source:
    statements: list[Statement] = []
    for statement in _parse(text, path):
        if isinstance(statement, IncludeStatement):
            line = f"{path}:{statement.location.line_num}" if path else "--gin_bindings"
            statements.append(_read_file(statement.filename, search_paths, line, opened))
        else:
            statements.append(statement)
    return Source(path, tuple(statements))


def _parse(text: str, path: str | None) -> Iterator[Any]:
    stream = io.StringIO(text)
    stream.name = path  # where gin takes the file name of its locations from
    try:
        yield from config_parser.ConfigParser(stream, _Placeholders())
    except SyntaxError as error:
        line = error.text or ""
        problem = error.msg.splitlines()[-1].strip().rstrip(".")
        raise ConfigError(_syntax_message(text, path, error.lineno, line, problem)) from None
    except tokenize.TokenError as error:
        problem, (number, _) = error.args
        raise ConfigError(_syntax_message(text, path, number, "", problem)) from None


def _syntax_message(
    text: str, path: str | None, number: int | None, line: str, problem: str
) -> str:
    name, equals, value = (line if path else text).partition("=")
    name, value = name.strip(), value.strip()
    fixed = _mended(value if path is None else value.partition(" #")[0].strip()) if equals else None
    if path is None:
        hint = f" Did you mean {gin_flag(name, fixed)}?" if fixed else ""
        return f"--gin.{name}={value}: this is not gin syntax: {problem}.{hint}"
    hint = f" Did you mean `{name} = {fixed}`?" if fixed else ""
    return f"{path}:{number}: this is not gin syntax: {problem}.{hint}\n    {line.strip()}"


def _mended(value: str) -> str | None:
    """Returns the gin value that was probably meant by `value`, which gin cannot read.

    >>> print(_mended("/tmp/run"), _mended("false"), _mended("{inputs: 512}"))
    '/tmp/run' False {'inputs': 512}
    """
    constants = {"true": "True", "false": "False", "none": "None", "null": "None"}
    if value.lower() in constants:
        return constants[value.lower()]
    if not value or value[0] in "'\"@%":
        return None
    if value[0] not in "[({":
        return repr(value)
    quoted = re.sub(r"(?<![\w'\"])(?!(?:True|False|None)\b)([A-Za-z_]\w*)", r"'\1'", value)
    try:
        return repr(ast.literal_eval(quoted))
    except (SyntaxError, ValueError):
        return None
