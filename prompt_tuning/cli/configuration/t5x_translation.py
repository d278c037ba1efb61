"""Turns what a configuration says in the names of t5x and of the original into ours.

Nothing is executed: statements become other statements at the same place, so that a message names
the line or the flag that the user wrote. What has no effect here is said once in the log; what
would have one and cannot is an error.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from gin.config_parser import BindingStatement, BlockDeclaration, ImportStatement

from prompt_tuning.cli.configuration import t5x_names
from prompt_tuning.cli.configuration.gin_reader import (
    Configuration,
    Macro,
    Reference,
    Source,
    Statement,
    binding_name,
    macros_in,
    place,
    references_in,
)
from prompt_tuning.cli.configuration.t5x_names import (
    Always,
    Meaning,
    NoEffect,
    Nothing,
    Ours,
    Wired,
)
from prompt_tuning.data import original_modules
from prompt_tuning.errors import ConfigError, nearest

# Those of their functions that share a name with one of ours.
_SHARED = ("Prompt", "train", "evaluate", "infer", "SentencePieceVocabulary", "uniform")

log = logging.getLogger("prompt_tuning")


def translated(configuration: Configuration) -> Configuration:
    """Returns the configuration with our names in place of those of t5x and of the original.

    Raises:
        ConfigError: a setting that has no counterpart, or a value that cannot be had.
    """
    translation = _Translation(
        run=_run(configuration),
        read=frozenset(
            macro.name for one in configuration.bindings() for macro in macros_in(one.value)
        ),
    )
    files = tuple(translation.source(file, ()) for file in configuration.files)
    imports = tuple(
        one for file in files for one in file.walk() if isinstance(one, ImportStatement)
    )
    return Configuration(
        files=files, command_line=translation.source(configuration.command_line, imports)
    )


def _run(configuration: Configuration) -> str:
    """Which of t5x's programs the configuration is for, told by the macros of its run file."""
    defined = {one.selector for one in configuration.bindings() if not one.arg_name}
    kinds = {"EVAL_OUTPUT_DIR": "eval", "INFER_OUTPUT_DIR": "infer"}
    return next((kind for macro, kind in kinds.items() if macro in defined), "train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Translation:
    run: str
    read: frozenset[str]

    def source(self, source: Source, imports: Sequence[ImportStatement]) -> Source:
        """Translates one file, or the bindings of the command line.

        Args:
            source: as it was read.
            imports: of the files, which bindings of the command line can use.
        """
        statements: list[Statement] = []
        kept = list(imports)  # what a translated binding may refer to
        gone: set[str] = set()  # names of modules of theirs
        for one in source.statements:
            if isinstance(one, Source):
                statements.append(self.source(one, ()))
            elif isinstance(one, ImportStatement):
                found = self._imports(one)
                kept += found
                statements += found
                gone |= {one.bound_name()} - {other.bound_name() for other in found}
            elif isinstance(one, BlockDeclaration):
                if not _is_theirs(one.selector, gone):
                    statements.append(one)
            else:
                statements += self._binding(one, kept, gone, source.path)
        return dataclasses.replace(source, statements=tuple(statements))

    def _imports(self, one: ImportStatement) -> list[ImportStatement]:
        if one.module == "__main__":
            module = {"eval": "eval", "infer": "infer", "train": "train"}[self.run]
            return [
                one._replace(
                    module=f"prompt_tuning.cli.{module}", is_from=True, alias=one.bound_name()
                )
            ]
        ours = original_modules.ours(one.module)
        if ours != (one.module,):
            alias = one.bound_name() if one.is_from or one.alias else None
            first = one._replace(module=ours[0], alias=alias)
            others = [one._replace(module=module, is_from=False, alias=None) for module in ours[1:]]
            return [first, *others]
        theirs = any(f"{one.module}.".startswith(f"{name}.") for name in t5x_names.MODULES)
        return [] if theirs else [one]

    def _binding(
        self,
        one: BindingStatement,
        imports: Sequence[ImportStatement],
        gone: set[str],
        path: str | None,
    ) -> list[Statement]:
        meaning = self._meaning(one)
        if meaning is None:
            _check_known(one, gone)
            of_ours = not one.arg_name and _with_our_references(one.value) != one.value
            return [_executed(one, imports, path)] if of_ours else [one]
        if isinstance(meaning, Ours):
            return [_executed(_renamed(one, meaning), imports, path)]
        if isinstance(meaning, Nothing):
            raise ConfigError(f"{place(one)}: there is no `{_shown(one)}` here. {meaning.instead}")
        if isinstance(meaning, Always):
            if one.value not in meaning.values and not isinstance(one.value, Macro):
                raise ConfigError(
                    f"{place(one)}: `{_shown(one)}` cannot be {one.value!r} here: {meaning.why}. "
                    f"Leave it out, or set it to {' or '.join(map(repr, meaning.values))}."
                )
        elif isinstance(meaning, NoEffect):
            log.info("%s: `%s` has no effect here: %s.", place(one), _shown(one), meaning.why)
        else:
            _check_wiring(one, meaning)
        return []

    def _meaning(self, one: BindingStatement) -> Meaning | None:
        if not one.arg_name:
            return None if binding_name(one) in self.read else t5x_names.MACROS.get(one.selector)
        for selector in _suffixes(one.selector):
            name = f"{selector}.{one.arg_name}"
            data = t5x_names.DATA[self.run].get(f"{one.scope}/{name}" if one.scope else name)
            if found := data or t5x_names.SETTINGS.get(name):
                return found
        return None


def _suffixes(selector: str) -> list[str]:
    """`t5x.utils.DatasetConfig` -> itself, `utils.DatasetConfig`, `DatasetConfig`."""
    parts = selector.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _settings_of(function: str) -> dict[str, list[str]]:
    """What can be set of a function of theirs, by the names that their function goes by."""
    known: dict[str, list[str]] = {}
    for table in (*t5x_names.DATA.values(), t5x_names.SETTINGS):
        for name in table:
            owner, _, parameter = name.rpartition("/")[2].rpartition(".")
            known.setdefault(owner, []).append(parameter)
    return {name: known[name] for name in _suffixes(function) if name in known}


def _is_theirs(selector: str, gone: set[str]) -> bool:
    if selector.partition(".")[0] in gone:
        return True
    return any(name not in _SHARED for name in _settings_of(selector))


def _check_known(one: BindingStatement, gone: set[str]) -> None:
    """Raises `ConfigError` if a binding that means nothing here is of a function of theirs."""
    if not one.arg_name or not _is_theirs(one.selector, gone):
        return
    known = {name for names in _settings_of(one.selector).values() for name in names}
    raise ConfigError(
        f"{place(one)}: `{_shown(one)}` is a name of t5x that means nothing here."
        f"{nearest(one.arg_name, sorted(known))} docs/from_t5x.md lists those that do."
    )


def _check_wiring(one: BindingStatement, meaning: Wired) -> None:
    """Raises `ConfigError` if something else is put in the place of a part of theirs."""
    others = [
        reference.selector
        for reference in references_in(one.value)
        if reference.selector.rpartition("/")[2].rpartition(".")[2] not in t5x_names.PARTS
    ]
    if others or not _is_wiring(one.value):
        what = f"@{others[0]}" if others else repr(one.value)
        raise ConfigError(
            f"{place(one)}: `{_shown(one)}` is how t5x puts its parts together, and cannot be "
            f"{what} here. {meaning.instead}"
        )


def _is_wiring(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_wiring, value))
    return isinstance(value, Macro | Reference)


def _shown(one: BindingStatement) -> str:
    return binding_name(one)


def _renamed(one: BindingStatement, meaning: Ours) -> BindingStatement:
    value = one.value
    for theirs, ours in meaning.values.items():
        if value == theirs and isinstance(value, bool) == isinstance(theirs, bool):
            value = ours
            break
    if ":" not in meaning.target:
        return one._replace(scope="", selector=meaning.target, arg_name="", value=value)
    selector, _, parameter = meaning.target.replace(":", ".").rpartition(".")
    scope = one.scope if meaning.scope is None else meaning.scope
    return one._replace(scope=scope, selector=selector, arg_name=parameter, value=value)


def _with_our_references(value: Any) -> Any:
    """Replaces their functions in a value by ours, in containers too."""
    if isinstance(value, dict):
        return {key: _with_our_references(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_our_references(item) for item in value)
    if isinstance(value, Reference):
        scope, slash, selector = value.selector.rpartition("/")
        for name in _suffixes(selector):
            if target := t5x_names.REFERENCES.get(name):
                # A search is made by its configuration; t5x hands the function itself over.
                called = value.evaluate or name.startswith("decoding.")
                return Reference(f"{scope}{slash}{target.replace(':', '.')}", called)
    return value


def _executed(
    one: BindingStatement, imports: Sequence[ImportStatement], path: str | None
) -> Source:
    """A binding of ours, with the imports that it needs, as if it was a file of its own."""
    value = _with_our_references(one.value)
    targets = [one.selector] if one.arg_name else []
    targets += [reference.selector.rpartition("/")[2] for reference in references_in(value)]
    modules = {
        target.rpartition(".")[0] for target in targets if target.startswith("prompt_tuning.")
    }
    at = one.location
    registration = ImportStatement("__gin__.dynamic_registration", True, None, at)
    ours = [ImportStatement(module, False, None, at) for module in sorted(modules)]
    others = [other for other in imports if not other.module.startswith("__gin__")]
    needed = others if any(not name.startswith("prompt_tuning.") for name in targets) else []
    return Source(path, (registration, *needed, *ours, one._replace(value=value)))
