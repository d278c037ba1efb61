"""The report of a run: its sections in their order, as a page and pictures in a folder."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.reporting.answers import answered, confusions_of, examples_of
from prompt_tuning.reporting.blocks import Code, Figures, Section, table
from prompt_tuning.reporting.costs import (
    costs_of,
    environment_of,
    facts_of,
    status_of,
    steps_of,
)
from prompt_tuning.reporting.measured import curves_of, table_of
from prompt_tuning.reporting.page import page
from prompt_tuning.reporting.run_files import CONFIG, RunFiles
from prompt_tuning.reporting.vectors import Embeddings, movement_of, tokens_of

FILE = "report.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A report that is not written yet.

    Attributes:
        page: HTML that holds all it needs.
        pictures: PNG of every plot, by name.
        left_out: why a section has nothing, by its title.
    """

    page: str
    pictures: Mapping[str, bytes]
    left_out: Mapping[str, str]

    def save(self, folder: epath.PathLike) -> epath.Path:
        """Writes the pictures and then the page, each whole or not at all; returns its path."""
        place = epath.Path(folder)
        for name, content in self.pictures.items():
            storage.write_whole(place / f"{name}.png", content)
        storage.write_whole(place / FILE, self.page.encode())
        return place / FILE


def report(
    run: RunFiles, *, embeddings: Embeddings | None = None, no_embeddings: str | None = None
) -> Report:
    """Returns the report of a run. The same files give the same bytes.

    Args:
        run: what it has left, see `run_files.read_run`.
        embeddings: of its base, for the nearest tokens.
        no_embeddings: why there are none.

    Raises:
        CheckpointError: a file of the run is not what was written.
    """
    answers = answered(run)
    matrices = {one.task: one.confusion for one in answers if one.confusion is not None}
    sections = [
        curves_of(run, matrices),
        table_of(run),
        confusions_of(answers),
        examples_of(answers),
        movement_of(run, embeddings),
        tokens_of(run, embeddings, no_embeddings),
        costs_of(run),
        environment_of(run),
        _configuration(run),
    ]
    plots = [
        plot
        for section in sections
        for block in section.blocks
        if isinstance(block, Figures)
        for plot in block.plots
    ]
    return Report(
        page=page(title=_title(run), about=_about(run), facts=facts_of(run), sections=sections),
        pictures={plot.name: plot.png for plot in plots},
        left_out={one.title: one.reason for one in sections if one.reason is not None},
    )


def _title(run: RunFiles) -> str:
    """Returns the tasks of a run, or the name of its folder."""
    tasks = list(dict.fromkeys(log.task for log in run.logs))
    task = run.prompt.task if run.prompt is not None else None
    return ", ".join(tasks) or task or run.folder.name or str(run.folder)


def _about(run: RunFiles) -> list[str]:
    first, newest = steps_of(run)
    said = ["Evaluation." if run.is_evaluation else f"{_kind(run)}, {status_of(run)}."]
    if first is not None and newest is not None and newest > first:
        said[0] += f" Steps {first:,} to {newest:,}."
    elif newest is not None:
        said[0] += f" Step {newest:,}."
    base = run.summary.get("base", {})
    name = base.get("path") or (run.prompt.base_name if run.prompt is not None else None)
    digest = base.get("hash") or (run.prompt.base if run.prompt is not None else None)
    if name:
        said.append(f"Base: {name}" + (f" (hash {digest[:12]})" if digest else ""))
    said += run.summary.get("warnings", [])
    return said


def _kind(run: RunFiles) -> str:
    if not run.trains_model:
        return "Prompt tuning"
    return "Pretraining" if "CORPUS" in run.settings else "Model tuning"


def _configuration(run: RunFiles) -> Section:
    name, title = "configuration", "Configuration"
    if run.config is None:
        return Section(name=name, title=title, reason=f"There is no {CONFIG} in the folder.")
    blocks = []
    if run.settings:
        rows = [[setting, value] for setting, value in run.settings.items()]
        caption = "Settings by their macros, as they were in effect."
        blocks.append(table(["", ""], rows, caption=caption, numeric=False))
    blocks.append(Code(title=f"All of {CONFIG}", text=run.config))
    return Section(name=name, title=title, blocks=blocks)
