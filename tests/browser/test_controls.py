"""The site's controls by the keyboard alone, and its search."""

import pytest

CHAPTER = "notebooks/quantization/gptq.html"
FOCUS = """(() => {
  const e = document.activeElement;
  const shown = [e, ...e.children].map((part) => getComputedStyle(part)).some(
    (style) => (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none");
  return {name: e.getAttribute("aria-label") || e.title || e.innerText.trim(), tag: e.tagName, shown,
          place: e.className};
})()"""


def tour(chromium, steps):
    """What has the focus after each press of Tab, from the top of the page."""
    found = []
    for _ in range(steps):
        chromium.press("Tab")
        found.append(chromium.evaluate(FOCUS))
    return found


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (1280, ("Skip to main content", "Search", "Color mode", "Launch interactive content", "Source repositories")),
        (390, ("Skip to main content", "Toggle primary sidebar", "Search", "Color mode", "Toggle secondary sidebar")),
    ],
)
def test_the_keyboard_reaches_the_controls_and_shows_where_it_is(chromium, site, width, wanted):
    chromium.view(width)
    chromium.open(site / CHAPTER)
    stops = tour(chromium, 70)
    names = [stop["name"] for stop in stops]
    assert [name for name in wanted if not any(name in found for found in names)] == []
    assert any(stop["tag"] == "SUMMARY" or "copybtn" in stop["place"] for stop in stops), "the text is reached too"
    assert [stop for stop in stops if not stop["shown"] and stop["tag"] != "BODY"] == []


def test_the_skip_link_skips(chromium, site):
    chromium.view(1280)
    chromium.open(site / CHAPTER)
    chromium.press("Tab")
    chromium.press("Enter")
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.closest('.bd-article, #main-content, main') !== null")


def test_the_theme_changes_by_key(chromium, site):
    chromium.view(1280)
    chromium.open(site / CHAPTER)
    modes = set()
    chromium.evaluate("document.querySelector('.theme-switch-button').focus()")
    for _ in range(3):
        before = chromium.evaluate("document.documentElement.dataset.mode")
        chromium.press("Enter")
        modes.add(
            chromium.wait_for(
                f"document.documentElement.dataset.mode !== {before!r} && document.documentElement.dataset.mode"
            )
        )
        chromium.wait_for("document.activeElement.matches('.theme-switch-button')")
    assert modes == {"light", "dark", "auto"}
    chromium.evaluate("localStorage.clear()")


def test_the_search_opens_by_key_and_closes(chromium, site):
    chromium.view(390)
    chromium.open(site / CHAPTER)
    chromium.evaluate("[...document.querySelectorAll('.search-button__button')].find((b) => b.offsetParent).focus()")
    chromium.press("Enter")
    chromium.wait_for("document.activeElement.matches('input[type=search]')")
    chromium.press("Escape")
    chromium.wait_for("!document.querySelector('dialog[open]')")


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("GPTQ", CHAPTER),
        ("Hessian", CHAPTER),
        ("lottery", "notebooks/pruning/lottery_ticket.html"),
    ],
)
def test_search_finds(chromium, site, words, page):
    chromium.view(1280)
    seen = chromium.open(site / "search.html", f"?q={words}")
    chromium.wait_for(f"[...document.querySelectorAll('#search-results a')].some((a) => a.href.includes({page!r}))", 20)
    assert not seen.errors
    assert not seen.external


def test_search_says_when_nothing_is_found(chromium, site):
    chromium.view(1280)
    chromium.open(site / "search.html", "?q=qzxqzx")
    chromium.wait_for("document.querySelector('#search-results')?.innerText.includes('did not match')")
