"""The page of messages is complete and true: whatever the program can say stands on it, and back.

Messages are found where they are made, in the source: what is put in is `…`. An entry of the page
shows a message, or a part of it that several have in common, in the section of its exit code.
"""

import ast
import pathlib
import re
from collections.abc import Iterator

from prompt_tuning import errors

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs/troubleshooting.md"
SOURCES = [*sorted((ROOT / "prompt_tuning").rglob("*.py")), *sorted((ROOT / "tasks").glob("*.py"))]

WARNING = "warnings"
# Said before the program ends with a code that no error has.
STDERR = "standard error"
HOLE = "…"
# Files of functions that return what is then logged as a warning.
RETURNED = ("alarms.py", "concerns.py")
# What a message or a pattern must have beside its holes to be one.
SHORTEST = 5
# Of how many messages an entry may speak.
MOST = 12


def exit_codes() -> dict[str, int]:
    """Every class of errors, those that are defined elsewhere as well, with its exit code."""
    found = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and hasattr(kind, "exit_code")
    }
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                for base in bases:
                    if base in found:
                        found.setdefault(node.name, found[base])
    return found


class Module:
    """The messages of one file."""

    def __init__(self, path: pathlib.Path, codes: dict[str, int]):
        self.path, self.codes = path, codes
        self.tree = ast.parse(path.read_text("utf-8"))
        self.functions = {
            node.name: node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }

    def messages(self) -> Iterator[tuple[object, str, str]]:
        """Yields the section, the message and where it is made."""
        yield from self._messages(self.tree, None)
        if self.path.name in RETURNED:
            for node in ast.walk(self.tree):
                for text in self._warned(node):
                    yield WARNING, " ".join(text.split()), str(self.path.relative_to(ROOT))

    def _warned(self, node: ast.AST) -> set[str]:
        match node:
            case ast.Return(value=ast.expr() as value) | ast.ListComp(elt=value):
                return self._texts(value, None, 0)
            case ast.Call(func=ast.Attribute(attr="append"), args=[value]):
                return self._texts(value, None, 0)
        return set()

    def _messages(self, node, scope) -> Iterator[tuple[object, str, str]]:
        for child in ast.iter_child_nodes(node):
            inner = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope
            if isinstance(child, ast.Call) and (section := self._section(child)) is not None:
                for text in self._texts(child.args[0], inner, 3) if child.args else ():
                    where = f"{self.path.relative_to(ROOT)}:{child.lineno}"
                    yield section, " ".join(text.split()).removeprefix("error: "), where
            yield from self._messages(child, inner)

    def _section(self, call: ast.Call) -> object:
        function = call.func
        if isinstance(function, ast.Name | ast.Attribute):
            name = function.id if isinstance(function, ast.Name) else function.attr
            if name in self.codes:
                return self.codes[name]
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            said = (function.value.id, function.attr)
            if said in {("log", "warning"), ("log", "error"), ("warnings", "warn")}:
                return WARNING
        is_print = isinstance(function, ast.Name) and function.id == "print"
        to_stderr = is_print and any(word.arg == "file" for word in call.keywords)
        return STDERR if to_stderr and self.path.name == "__main__.py" else None

    def _texts(self, node: ast.AST, scope, depth: int) -> set[str]:
        """What a piece of source can say; names and functions of the file are looked up."""
        match node:
            case ast.Constant(value=str(text)):
                return {re.sub(r"%(\.\d+)?[srdgf]", HOLE, text)}
            case ast.JoinedStr(values=values):
                return {"".join(self._piece(value) for value in values)}
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                lefts, rights = (self._texts(side, scope, depth) for side in (left, right))
                return {one + two for one in lefts for two in rights}
            case ast.IfExp(body=body, orelse=other):
                return self._texts(body, scope, depth) | self._texts(other, scope, depth)
            case ast.BoolOp(values=values):
                return set().union(*(self._texts(value, scope, depth) for value in values))
            case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=elements)]):
                parts = [min(self._texts(one, scope, depth)) for one in elements]
                return {" ".join(parts)}
            case ast.Call(func=ast.Attribute(attr="join"), args=[lines]):
                return self._texts(lines, scope, depth)
            case ast.ListComp(elt=line) | ast.GeneratorExp(elt=line):
                return self._texts(line, scope, depth)
            case ast.Name(id=name) if depth and scope is not None:
                values = [
                    found.value
                    for found in ast.walk(scope)
                    if isinstance(found, ast.Assign)
                    and any(isinstance(one, ast.Name) and one.id == name for one in found.targets)
                ]
                return set().union(*(self._texts(one, scope, depth - 1) for one in values))
            case ast.Call(func=ast.Name(id=name)) if depth and name in self.functions:
                function = self.functions[name]
                values = [found.value for found in ast.walk(function) if returns(found)]
                return set().union(*(self._texts(one, function, depth - 1) for one in values))
        return {HOLE}

    def _piece(self, value: ast.AST) -> str:
        return value.value if isinstance(value, ast.Constant) else HOLE


def returns(node: ast.AST) -> bool:
    return isinstance(node, ast.Return) and node.value is not None


def letters(text: str) -> int:
    return len(re.findall(r"\w", text))


def all_messages() -> list[tuple[object, str, str]]:
    codes = exit_codes()
    found = [one for path in SOURCES for one in Module(path, codes).messages()]
    # What has no words of its own hands on those of another.
    return [(section, text, where) for section, text, where in found if letters(text) >= SHORTEST]


CODE = r"(?:``+ .+? ``+|`[^`]+`)"


def entries() -> list[tuple[object, str]]:
    """The messages that the page shows, with the section they stand in."""
    found, section = [], None
    for line in PAGE.read_text("utf-8").splitlines():
        if heading := re.match(r"## (?:Exit code (\d+)|(Warnings))", line):
            section = int(heading[1]) if heading[1] else WARNING
        elif line.startswith("## "):
            section = None
        elif section is not None and (entry := re.match(rf"- ((?:{CODE}(?:, )?)+): ", line)):
            found += [
                (section, " ".join(code.strip("`").split())) for code in re.findall(CODE, entry[1])
            ]
    return found


def covers(at: object, pattern: str, section: object, message: str) -> bool:
    """Whether the fragments of the pattern stand in the message, in their order."""
    parts = [re.escape(part.strip()) for part in pattern.split(HOLE)]
    return section in (at, STDERR) and re.search(".*".join(parts), message) is not None


MESSAGES, ENTRIES = all_messages(), entries()


def test_messages_are_found_where_they_are_made():
    assert len(MESSAGES) > 400
    assert {section for section, _, _ in MESSAGES} >= {2, 3, 4, 5, 7, 75, WARNING}


def test_every_message_stands_on_the_page_under_its_exit_code():
    missing = [
        f"{section}: {text} ({where})"
        for section, text, where in MESSAGES
        if not any(covers(at, pattern, section, text) for at, pattern in ENTRIES)
    ]
    assert not missing, "docs/troubleshooting.md lacks:\n" + "\n".join(missing)


def test_everything_on_the_page_can_be_said():
    unsaid = [
        f"{section}: {pattern}"
        for section, pattern in ENTRIES
        if not any(covers(section, pattern, at, text) for at, text, _ in MESSAGES)
    ]
    assert not unsaid, "nothing says:\n" + "\n".join(unsaid)


def test_no_entry_says_so_little_that_it_would_cover_anything():
    covered = {
        pattern: sum(covers(at, pattern, section, text) for section, text, _ in MESSAGES)
        for at, pattern in ENTRIES
    }
    assert not [pattern for pattern, count in covered.items() if count > MOST]
    assert not [pattern for pattern in covered if letters(pattern) < SHORTEST]


def test_every_exit_code_has_a_section():
    text = PAGE.read_text("utf-8")
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 75, 130, 141):
        assert re.search(rf"^## Exit code {code}\b", text, re.M), code
