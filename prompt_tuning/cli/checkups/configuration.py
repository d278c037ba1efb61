"""What a configuration sets, read and not executed: faults in it do not stop the other checks."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.configuration import gin_checks, gin_reader
from prompt_tuning.cli.configuration.gin_reader import Configuration, Macro, binding_name
from prompt_tuning.cli.configuration.shipped_paths import with_paths
from prompt_tuning.errors import ConfigError, PromptTuningError
from prompt_tuning.paths import unreachable

GROUP = "configuration"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The macros of a configuration and their last values."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """Returns a macro's value, through other macros; None for one without a value of its own.

        What a gin file computes (`@function()`) is unknown before it is called, so it is None, too,
        but for the paths of files that the package brings along.
        """
        return self._resolved(self.values.get(name), seen=(name,))

    def texts(self, name: str) -> list[str]:
        """Returns the text or texts that a macro is."""
        value = self[name]
        values = value if isinstance(value, list | tuple) else [value]
        return [one for one in values if isinstance(one, str) and one]

    def _resolved(self, value: Any, seen: tuple[str, ...]) -> Any:
        if isinstance(value, Macro):
            again = value.is_constant or value.name in seen
            following = (*seen, value.name)
            return None if again else self._resolved(self.values.get(value.name), following)
        if isinstance(value, list | tuple):
            return [self._resolved(one, seen) for one in value]
        value = with_paths(value)
        return None if isinstance(value, gin_reader.Reference) else value


def read(arguments: RunArguments) -> tuple[Settings, list[Finding]]:
    """Returns what the flags of a run set, and what is wrong with them."""
    if not arguments.gin_file and not arguments.gin_bindings:
        return Settings(), []
    try:
        for path in arguments.gin_file:
            if reason := unreachable(path):  # which reading it would find out after minutes
                raise ConfigError(f"--gin_file={path}: {reason}")
        configuration = config.read(arguments)
    except PromptTuningError as error:
        return _of_the_command_line(arguments), [_fault(error)]
    found = list(_checked(configuration))
    if not found:
        files = len(configuration.files)
        about = f"{files} gin {'file' if files == 1 else 'files'}, every setting has a value"
        more = "The same command with --dry_run builds the model and reads the data"
        found = [Finding(group=GROUP, name="gin", state="ok", found=about, advice=more)]
    return _settings(configuration), found


def _checked(configuration: Configuration) -> Iterator[Finding]:
    for check in (gin_checks.check_order, gin_checks.check_macros):
        try:
            check(configuration, config.gin_root())
        except PromptTuningError as error:
            yield _fault(error)


def _of_the_command_line(arguments: RunArguments) -> Settings:
    """Returns what can be known without the files: the paths are worth a look all the same."""
    try:
        bindings = gin_reader.read_bindings(arguments.gin_bindings, ["."])
    except PromptTuningError:
        return Settings()
    return _settings(Configuration(files=(), command_line=bindings))


def _settings(configuration: Configuration) -> Settings:
    bindings: Sequence[Any] = [one for one in configuration.bindings() if not one.arg_name]
    return Settings({binding_name(one): one.value for one in bindings})


def _fault(error: PromptTuningError) -> Finding:
    return Finding(group=GROUP, name="gin", state="fault", found=str(error), kind=type(error))
