"""From every format of models and prompts to every other that can hold the same."""

import dataclasses
import re

from etils import epath

from prompt_tuning.checkpoints import base, formats
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.methods import fitted, to_t5x_names
from prompt_tuning.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to make of what.

    Attributes:
        source: a model or prompt of any format.
        target: where the other goes; nothing may be there.
        source_format: name in the tables of formats; None finds out.
        target_format: None tells it from the name of `target`, and for `*.safetensors` from what
            `source` is.
        base: the model that a prompt belongs to.
        base_name: what others call the base.
        dtype: to store a model in; None keeps that of every array as it is read. What is int8 is
            read as float32.
        step: of a model whose format does not say.
        task: which prompt of a multi-task adapter.
        family: `t5` or `mt5`, the model_type of a Hugging Face model; None is `t5`, which is right
            for the numbers of every family.
        without_prompt: leave out the prompt that a model checkpoint holds.
    """

    source: epath.Path
    target: epath.Path
    source_format: str | None = None
    target_format: str | None = None
    base: epath.Path | None = None
    base_name: str | None = None
    dtype: str | None = None
    step: int | None = None
    task: int | None = None
    family: str | None = None
    without_prompt: bool = False

    def resolved(self) -> "Conversion":
        """Returns the same with both formats named.

        Raises:
            ConfigError: a format that there is not, or the target's cannot be told.
            CheckpointError: there is nothing to convert, or something in its place.
        """
        known = [*formats.MODEL_FORMATS, *formats.PROMPT_FORMATS]
        for name in (self.source_format, self.target_format):
            if name is not None and name not in known:
                raise ConfigError(
                    f"There is no format {name!r}, known are {', '.join(known)}."
                    f"{nearest(name, known)}"
                )
        storage.refuse_existing(self.target)
        source = self.source_format or formats.format_of(self.source)
        target = self.target_format or _format_by_name(self.target)
        if self.target_format is None and target == "prompt" and self._is_bare_model(source):
            target = "safetensors"
        return dataclasses.replace(self, source_format=source, target_format=target)

    def _is_bare_model(self, source: str) -> bool:
        if source not in formats.MODEL_FORMATS:
            return False
        return self.without_prompt or not formats.open_model(self.source, source).methods


def convert(wanted: Conversion) -> None:
    """Reads the source and writes the target, one array at a time; nothing is half written.

    Args:
        wanted: with both formats named, see `Conversion.resolved`.

    Raises:
        ConfigError: formats that do not go together, or a missing `base`.
        CheckpointError: the source is damaged, or holds what the target's format cannot.
    """
    if wanted.target_format in formats.PROMPT_FORMATS:
        _write_prompt(wanted)
    else:
        _write_model(wanted)


def _write_prompt(wanted: Conversion) -> None:
    file = formats.open_prompt(wanted.source, wanted.source_format, task=wanted.task)
    contents = None if wanted.base is None else formats.open_model(wanted.base)
    if contents is not None:
        # Refuses a prompt of another width before the base is read.
        file = fitted(file, contents.config)
        file = file.over(base.fingerprint(contents), name=wanted.base_name or str(wanted.base))
    elif wanted.base_name is not None:
        file = dataclasses.replace(file, base_name=wanted.base_name)
    save = formats.PROMPT_FORMATS[str(wanted.target_format)].save
    save(file, wanted.target, config=contents.config if contents else None)


def _write_model(wanted: Conversion) -> None:
    target = formats.MODEL_FORMATS[str(wanted.target_format)]
    if target.save is None:
        raise ConfigError(
            f"Models are read from the format {wanted.target_format!r} and not written to it. "
            f"Choose one of {', '.join(formats.WRITABLE)}."
        )
    contents = _open_model(wanted)
    methods = {} if wanted.without_prompt else contents.methods
    options: dict[str, object] = {"methods": methods} if target.holds_prompts else {}
    if methods and not target.holds_prompts:
        raise ConfigError(
            f"{contents.where!s} holds a prompt ({', '.join(methods)}), which a model in the "
            f"format {wanted.target_format!r} cannot. Add --without_prompt, and convert the prompt "
            "by itself, for example with --to_format=peft."
        )
    if wanted.target_format == "huggingface":
        options["family"] = wanted.family or "t5"
    target.save(
        contents.tensors,
        contents.config,
        contents.step if wanted.step is None else wanted.step,
        wanted.target,
        dtype=wanted.dtype,
        **options,
    )


def _open_model(wanted: Conversion) -> Contents:
    if wanted.source_format not in formats.PROMPT_FORMATS:
        return formats.open_model(wanted.source, wanted.source_format)
    if wanted.base is None:
        raise ConfigError(
            f"{wanted.source!s} is a prompt; to make a model checkpoint of it name the model it "
            "belongs to with --base."
        )
    file = formats.open_prompt(wanted.source, wanted.source_format, task=wanted.task)
    contents = formats.open_model(wanted.base)
    file = fitted(file, contents.config)
    return dataclasses.replace(
        contents,
        methods=to_t5x_names(file),
        step=contents.step if file.step is None else file.step,
    )


def _format_by_name(target: epath.Path) -> str:
    for pattern, name in _NAMES.items():
        if re.fullmatch(pattern, target.name):
            return name
    known = [*formats.WRITABLE, *formats.PROMPT_FORMATS]
    raise ConfigError(
        f"The format of {target!s} cannot be told from its name: set --to_format to one of "
        f"{', '.join(known)}."
    )


# What the names of files and folders say about their format.
_NAMES = {
    r".+\.npy": "npy",
    r"encoder\.prompt\.prompt\.prompt": "npy",
    r".+\.safetensors": "prompt",  # or "safetensors", if there is no prompt in the source
    r"checkpoint_\d+": "t5x",
}
