"""The page: one file with its style and its plots inside, which asks for nothing else."""

import pathlib
from collections.abc import Sequence

import jinja2

from prompt_tuning.reporting.blocks import Fact, Section

_HERE = pathlib.Path(__file__).parent
TEMPLATE, STYLE = "page.html", "page.css"


def page(
    *, title: str, about: Sequence[str], facts: Sequence[Fact], sections: Sequence[Section]
) -> str:
    """Returns the page as HTML.

    Args:
        title: of the page.
        about: what stands under it, line by line.
        facts: figures at its head.
        sections: its parts.
    """
    # The template calls only the style and the drawings safe; whatever comes from a run is escaped.
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_HERE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE).render(
        style=(_HERE / STYLE).read_text("utf-8"),
        title=title,
        about=about,
        facts=facts,
        sections=sections,
    )
