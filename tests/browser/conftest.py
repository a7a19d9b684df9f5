"""A browser and the built site, or the reason why there is none.

`make browser` sets BROWSER=required: then a missing browser or site is a failure. `make test` skips with the reason.
$BOOK_SITE names another built site than `_build/html`.
"""

import os
from pathlib import Path

import book_paths
import browser
import build_book
import pytest

SITE = Path(os.environ.get("BOOK_SITE") or book_paths.HTML).resolve()


def why_not() -> str | None:
    """Why the site cannot be looked at; None where it can."""
    if browser.find() is None:
        return f"no Chromium here ({', '.join(browser.NAMES)}, or $CHROMIUM)"
    if not (SITE / "index.html").is_file():
        return f"no built site in {SITE}: run make book"
    if "BOOK_SITE" not in os.environ and not build_book.is_current():
        return "the built site is older than its source: run make book"
    return None


def pages() -> list[str]:
    """The site's pages, relative to it, largest first, so that two workers end together."""
    if why_not():
        return ["none"]
    found = [p for p in SITE.rglob("*.html") if not {"_static", "_downloads"} & set(p.relative_to(SITE).parts)]
    found.remove(SITE / "index.html")  # leads to the first page, and has no content of its own
    return [p.relative_to(SITE).as_posix() for p in sorted(found, key=lambda p: (-p.stat().st_size, p))]


def pytest_generate_tests(metafunc):
    if "any_page" in metafunc.fixturenames:
        metafunc.parametrize("any_page", pages())


@pytest.fixture(scope="session")
def chromium():
    if reason := why_not():
        if os.environ.get("BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with browser.Browser() as running:
        yield running


@pytest.fixture(scope="session")
def site(chromium):
    return SITE
