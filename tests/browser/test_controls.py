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


MARK = """(() => {
  const controls = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const found = [...document.querySelectorAll(controls)].filter((e) => e.tabIndex >= 0 && !e.disabled && e.type !== "hidden"
    && e.getClientRects().length && getComputedStyle(e).visibility === "visible" && !e.closest("details:not([open]) > :not(summary)"));
  found.forEach((e) => { e.dataset.wanted = e.outerHTML.slice(0, 120); });
  return found.length;
})()"""
STEP = f"""(() => {{
  const e = document.activeElement, found = {FOCUS};
  delete e.dataset.wanted;
  return found;
}})()"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "page",
    [
        "book/self_check.html",
        "book/gallery.html",
        "book/how_to_run.html",
        "notebooks/deployment/trade_offs.html",
        "notebooks/quantization/post_training.html",
        "book/api/tensors.html",
    ],
)
def test_tab_reaches_everything_and_shows_it(chromium, site, page, width):
    """Links, folds, copy buttons, widgets, what scrolls: each is a stop, none is a trap, and each stop is seen."""
    chromium.view(width)
    chromium.open(site / page)
    count = chromium.evaluate(MARK)
    unseen = []
    for _ in range(count + 10):
        chromium.press("Tab")
        stop = chromium.evaluate(STEP)
        if not stop["shown"] and stop["tag"] != "BODY":
            unseen.append(stop)
        if stop["tag"] == "BODY":
            break
    assert chromium.evaluate("[...document.querySelectorAll('[data-wanted]')].map((e) => e.dataset.wanted)") == []
    assert unseen == []


def test_folds_open_by_key(chromium, site):
    chromium.view(390)
    chromium.open(site / "book" / "self_check.html")
    chromium.evaluate("document.querySelector('article summary').focus()")
    answer = "document.querySelector('article details').open"
    chromium.press("Enter")
    assert chromium.evaluate(answer)
    chromium.press(" ")
    assert not chromium.evaluate(answer)


def test_a_fold_says_what_lies_in_it(chromium, site):
    chromium.view(1280)
    chromium.open(site / "notebooks" / "overview.html")
    said = "[...new Set([...document.querySelectorAll('.tag_TAG summary')].map((s) => s.innerText.trim()))]"
    assert chromium.evaluate(said.replace("TAG", "caption")) == ["Show the check of this caption"]
    assert chromium.evaluate(said.replace("TAG", "solution")) == ["Show the solution in code"]


def test_a_table_that_is_a_little_too_wide_fits_a_desk_and_scrolls_on_a_phone(chromium, site):
    too_wide = "[...document.querySelectorAll('article table')].filter((t) => t.scrollWidth > t.clientWidth + 1).length"
    smaller = "document.querySelectorAll('article table:is(.dense, .denser)').length"
    for width, fits in ((1280, True), (390, False)):
        chromium.view(width)
        chromium.open(site / "notebooks" / "overview.html")
        chromium.wait_for("document.readyState === 'complete'")
        assert (chromium.evaluate(too_wide) == 0) is fits
        assert (chromium.evaluate(smaller) > 0) is fits


def test_a_printed_sentence_is_wrapped_and_columns_are_not(chromium, site):
    chromium.view(390)
    chromium.open(site / "notebooks" / "overview.html")
    sort = """(text) => { const pre = document.querySelector(".cell_output pre"); pre.textContent = text;
        window.dispatchEvent(new Event("resize")); return pre.classList.contains("wraps"); }"""
    assert chromium.evaluate(f"({sort})('a sentence, and one more')")
    assert not chromium.evaluate(f"({sort})('W4A16   3.5\\nW8A8    1.9')")


def test_the_phones_side_bar_opens_and_closes_by_key(chromium, site):
    chromium.view(390)
    chromium.open(site / CHAPTER)
    chromium.evaluate("document.querySelector('.primary-toggle').focus()")
    chromium.press("Enter")
    chromium.wait_for("document.querySelector('#pst-primary-sidebar-modal[open]') !== null")
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.closest('#pst-primary-sidebar-modal') !== null")
    chromium.press("Escape")
    chromium.wait_for("document.querySelector('#pst-primary-sidebar-modal[open]') === null")


def test_a_button_copies(chromium, site):
    chromium.view(1280)
    chromium.open(site / CHAPTER)
    chromium.evaluate(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); };"
        "document.querySelector('.copybtn').focus()"
    )
    chromium.press("Enter")
    chromium.wait_for("document.querySelector('.copybtn.success') !== null || window.copied")


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


def test_a_pages_late_errors_are_not_the_next_ones(chromium, tmp_path):
    late, quiet = tmp_path / "late.html", tmp_path / "quiet.html"
    late.write_text("<script>setInterval(() => { throw new Error('late'); }, 1)</script>")
    quiet.write_text("<p>quiet</p>")
    for _ in range(10):
        chromium.open(late)
        assert chromium.open(quiet).errors == []
        assert chromium.evaluate("document.body.textContent.trim()") == "quiet"
    seen = chromium.open(late)
    chromium.wait_for("new Promise((done) => setTimeout(() => done(true), 50))")
    assert seen.errors
