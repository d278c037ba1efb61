"""The site builds, and every way through it leads somewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

from prompt_tuning.cli.configuration import t5x_files, t5x_names
from prompt_tuning.data import original_modules

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").exists()


def test_every_page_is_in_the_navigation():
    pages = set(re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert pages == {str(page.relative_to(DOCS)) for page in PAGES}


def test_every_link_of_the_site_leads_to_a_page_and_a_heading_of_it(site):
    for page in PAGES:
        built = site / page.relative_to(DOCS).with_suffix(".html")
        body = built.read_text("utf-8").partition('role="main"')[2]
        assert body, page.name
        for link in re.findall(r'href="([^"]+)"', body):
            if re.match(r"https?://", link):
                continue
            path, _, anchor = link.partition("#")
            target = (built.parent / path).resolve() if path else built
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert f'id="{anchor}"' in target.read_text("utf-8"), f"{page.name}: {link}"


def test_reading_the_site_asks_no_other_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'(?:src="|<link[^>]*href=")(?:https?:)?//[^"]*', text), page.name


def test_no_page_has_a_place_left_open():
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.findall(r"@@|\bTODO\b|\bTBD\b", text), page.name


def test_the_home_of_the_site_is_its_folder_that_git_ignores():
    (folder,) = re.findall(r"^site_dir: (\w+)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    assert f"/{folder}/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def macros(text: str) -> set[str]:
    return set(re.findall(r"^([A-Z][A-Z0-9_]*) *=", text, re.M))


def documented() -> set[str]:
    """The macros in the first columns of the tables of the page on gin."""
    section = (DOCS / "gin.md").read_text("utf-8").partition("## Macros")[2].partition("\n## ")[0]
    columns = [row.split(" | ")[0] for row in section.splitlines() if row.startswith("| `")]
    return set(re.findall(r"`([A-Z][A-Z0-9_]*)`", " ".join(columns)))


def test_the_page_on_gin_has_every_macro_of_the_package_and_no_other():
    files = [path for path in (ROOT / "gin").rglob("*.gin") if path.parent.name != "examples"]
    assert documented() == set().union(*(macros(path.read_text("utf-8")) for path in files))


def test_the_page_for_users_of_t5x_has_every_name_that_is_translated():
    page = (DOCS / "from_t5x.md").read_text("utf-8")
    settings = [*t5x_names.SETTINGS, *(name for run in t5x_names.DATA.values() for name in run)]
    names = [*settings, *t5x_names.MACROS, *original_modules.OURS]
    references = [f"@{name}" for name in t5x_names.REFERENCES]
    assert not [name for name in (*names, *references) if f"`{name}`" not in page]
    files = [ours for _, ours in t5x_files.FILES]
    assert page.count(".gin` | `") == len(files)
