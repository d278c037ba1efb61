"""What a run has left behind of its configuration, wherever that is: `config diff` compares it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.checkpoints import prompt_file, run, run_folder
from prompt_tuning.checkpoints.containers.safetensors_file import open_safetensors
from prompt_tuning.checkpoints.run_record import RunRecord
from prompt_tuning.cli import config, eval
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.configuration import gin_reader
from prompt_tuning.cli.configuration.gin_reader import Configuration, Source
from prompt_tuning.errors import CheckpointError, ConfigError, nearest

CONFIG = "config.gin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """The configuration of one run, as far as it is recorded.

    Attributes:
        configuration: its statements; None if only what decides the numbers is known.
        identity: what decides the numbers, name by name; None if it follows from `configuration`.
        hashes: of the base, the data and the vocabulary, as far as they are known.
        is_operative: whether all settings that were used are there, defaults included, and not
            only what somebody has written.
    """

    configuration: Configuration | None = None
    identity: Mapping[str, str] | None = None
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_operative: bool = True


def recorded(path: str, search_paths: Sequence[str] = ()) -> Recorded:
    """Reads what is recorded at a path.

    Args:
        path: of a run's folder, its `checkpoints` or one of them, a prompt's file or folder, the
            folder of an evaluation, or a gin file.
        search_paths: of gin files.

    Raises:
        CheckpointError: There is nothing, or no configuration in what there is.
        ConfigError: A gin file that is not there or cannot be read.
    """
    place = epath.Path(path)
    if place.suffix == ".gin":
        return _of_gin(path, search_paths)
    if not place.exists():
        around = [str(one) for one in place.parent.iterdir()] if place.parent.is_dir() else []
        raise CheckpointError(f"There is nothing at {path}.{nearest(str(place), around)}")
    if not place.is_dir():
        return _of_prompt(place)
    if (place / CONFIG).exists():
        found = _of_gin(str(place / CONFIG), search_paths)
        return dataclasses.replace(found, hashes=_hashes_in(place))
    if (place / prompt_file.FILE).exists():
        return _of_prompt(place / prompt_file.FILE)
    if (record := _newest_record(place)) is not None and record.identity is not None:
        return Recorded(identity=_without_hashes(record.identity), hashes=_hashes(record))
    if (place / eval.RECORD).exists():
        return _of_evaluation(place / eval.RECORD)
    runs = sorted(one.parent.name for one in place.glob(f"*/{CONFIG}"))
    raise CheckpointError(
        f"{path} is not the folder of a run: there is no {CONFIG} in it, no checkpoint, no "
        f"{prompt_file.FILE} and no {eval.RECORD}."
        + (f" Runs in it: {', '.join(runs)}." if runs else "")
    )


def _of_gin(path: str, search_paths: Sequence[str]) -> Recorded:
    arguments = RunArguments(gin_file=(path,), gin_search_paths=tuple(search_paths))
    is_operative = epath.Path(path).name == CONFIG
    return Recorded(configuration=config.read(arguments), is_operative=is_operative)


def _of_prompt(path: epath.Path) -> Recorded:
    metadata = open_safetensors(path).metadata
    if "config" not in metadata:
        raise CheckpointError(
            f"{path!s} does not say how it was trained: its metadata has no 'config'."
        )
    try:
        source = gin_reader.read_bindings([metadata["config"]], ())
    except ConfigError as error:
        raise CheckpointError(f"The metadata 'config' of {path!s} is not gin.") from error
    return Recorded(
        configuration=Configuration(files=(source,), command_line=Source(None, ())),
        hashes={"base": metadata["base"]} if metadata.get("base") else {},
    )


def _of_evaluation(path: epath.Path) -> Recorded:
    try:
        known = json.loads(path.read_text())
        step = max(known["steps"], key=int, default=None)
        made_of = {} if step is None else known["steps"][step]
        hashes = {**known["data"], **{name: str(value) for name, value in made_of.items()}}
        return Recorded(identity=_without_hashes(known["settings"]), hashes=hashes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path!s} is not what was written ({error!r}).") from error


def _hashes_in(folder: epath.Path) -> dict[str, str]:
    """Returns what the folder of a run says about its files: by a checkpoint, or the prompt."""
    record = _newest_record(folder)
    if record is not None:
        return _hashes(record)
    if (folder / prompt_file.FILE).exists():
        base = open_safetensors(folder / prompt_file.FILE).metadata.get("base")
        return {"base": base} if base else {}
    if (folder / eval.RECORD).exists():
        return dict(_of_evaluation(folder / eval.RECORD).hashes)
    return {}


def _newest_record(folder: epath.Path) -> RunRecord | None:
    """Returns the record of a checkpoint, or of the newest one of a run or a folder of them."""
    if (folder / "meta").exists():
        return run_folder.read_record(folder)
    for one in (folder / run.FOLDER, folder):
        if one.is_dir() and (steps := run_folder.saved_steps(one)):
            return run_folder.read_record(one / str(steps[-1]))
    return None


_HASHES = ("data", "vocabulary")


def _hashes(record: RunRecord) -> dict[str, str]:
    known = {"base": record.base} | {
        name: (record.identity or {}).get(name, "") for name in _HASHES
    }
    return {name: value for name, value in known.items() if value}


def _without_hashes(identity: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in identity.items() if name not in _HASHES}
