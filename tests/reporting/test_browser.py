"""The page in a browser: quiet, alone, and no wider than a phone."""

import pytest

from prompt_tuning.reporting import report
from prompt_tuning.reporting.run_files import read_run
from tests.reporting import browser
from tests.reporting.written_runs import HOSTILE, write_run

# No package of PyPI brings a browser along; what needs none of it is held by `test_report.py`.
FOUND = browser.found()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is on the PATH"
)


@pytest.fixture(scope="module")
def window():
    with browser.opened(FOUND) as found:
        yield found


@pytest.fixture(
    scope="module",
    params=["it is a charming film", f"{HOSTILE * 9} {'x' * 400}"],
    ids=["usual", "long"],
)
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return report(read_run(write_run(folder / "run", text=request.param))).save(folder / "report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_quiet_and_asks_for_nothing_and_fits(window, page, width, scheme):
    seen = window.look_at(page, width=width, scheme=scheme)
    assert seen.messages == []
    assert seen.requests == []
    assert seen.beyond == []
    assert seen.content <= width


def test_a_browser_tells_of_faults_and_requests_and_what_is_too_wide(window, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<p style='width: 2000px'>wide</p><img src='other.png'>"
        "<script>console.log('heard'); fail()</script>"
    )
    seen = window.look_at(path, width=390, scheme="light")
    assert any("heard" in one for one in seen.messages)
    assert any("fail is not defined" in one for one in seen.messages)
    assert [one.rpartition("/")[2] for one in seen.requests] == ["other.png"]
    assert len(seen.beyond) == 1
    assert seen.content > 390


def test_light_and_dark_differ(window, page):
    pictures = {window.look_at(page, width=390, scheme=one).picture for one in ("light", "dark")}
    assert len(pictures) == 2
