"""Every page of the built site, as a reader sees it: on a desk and on a phone, in light and in dark."""

import re

import axe

WIDE, NARROW = 1280, 390
MEASURE = """(() => {
  const root = document.documentElement;
  const silent = [...document.querySelectorAll("article img")].filter((i) => !i.alt.trim()).map((i) => i.src);
  const broken = [...document.images].filter((i) => i.complete && i.src && !i.naturalWidth).map((i) => i.src);
  const unreached = [...document.querySelectorAll(".bd-article :is(table, div.math, mjx-container)")].filter(
    (e) => e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
      && !e.hasAttribute("tabindex") && !e.closest("details:not([open])")).map((e) => e.outerHTML.slice(0, 80));
  return {width: root.scrollWidth, theme: root.dataset.theme, silent, broken, unreached,
          math: document.querySelectorAll("mjx-merror, .MathJax_Error").length};
})()"""


OPEN = """new Promise((done) => {
  document.querySelectorAll(".bd-article details").forEach((fold) => { fold.open = true; });
  setTimeout(() => done(true), 50); // the page hears of it a moment later
})"""


def test_a_page_reads_well(chromium, site, any_page):
    """No sideways scroll, no error, no request that fails or leaves the machine, no barrier, in four views, its folds open."""
    problems = []
    for width, dark in ((WIDE, False), (NARROW, True)):
        chromium.view(width, dark=dark)
        seen = chromium.open(site / any_page)
        chromium.evaluate(OPEN)
        for theme in ("light", "dark"):
            chromium.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
            where = f"{width} px, {theme}"
            found = chromium.evaluate(MEASURE)
            if found["width"] > width:
                problems.append(f"{where}: the page is {found['width']} px wide")
            problems += [f"{where}: no alt text: {image}" for image in found["silent"]]
            problems += [f"{where}: no such image: {image}" for image in found["broken"]]
            problems += [f"{where}: scrolls and the keyboard does not reach it: {part}" for part in found["unreached"]]
            problems += [f"{where}: {found['math']} formulas failed"] * bool(found["math"])
        # Before axe: what it leaves out of the page is missed by the theme's scripts.
        problems += [f"{width} px: error: {text}" for text in seen.errors]
        problems += [f"{width} px: failed: {text}" for text in seen.failed]
        problems += [f"{width} px: asks the network for {url}" for url in seen.external]
        axe.prepare(chromium)
        problems += [f"{width} px: {line}" for line in axe.violations(chromium, axe.STRUCTURE)]
        axe.thin(chromium)
        for theme in ("light", "dark"):
            chromium.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
            problems += [f"{width} px, {theme}: {line}" for line in axe.violations(chromium, axe.CONTRAST)]
    assert not problems, "\n".join([any_page, *problems])


def test_one_pale_word_is_found(chromium, site):
    """Leaving out what looks the same leaves in what does not: a word in the middle of a long page."""
    chromium.view(NARROW)
    chromium.open(site / "notebooks" / "overview.html")
    for place, style in (("p", "color: #999"), ("td", "background: #777"), ("li", "opacity: 0.4")):
        chromium.evaluate(f"""(() => {{
          const all = [...document.querySelectorAll(".bd-article {place}")].filter((e) => e.offsetParent);
          all[Math.floor(all.length / 2)].insertAdjacentHTML("beforeend", '<b style="{style}">pale</b>'); }})()""")
    axe.prepare(chromium)
    axe.thin(chromium)
    chromium.evaluate("document.documentElement.dataset.theme = 'light'")
    assert len(axe.violations(chromium, axe.CONTRAST)) == 3


def test_the_phones_own_controls_have_contrast(chromium, site):
    """The header and the side bars of a phone, which the wide page does not show."""
    chromium.view(NARROW)
    chromium.open(site / "book" / "index.html")
    chromium.evaluate("document.querySelector('.primary-toggle').click()")
    chromium.wait_for("document.querySelector('#pst-primary-sidebar-modal[open]') !== null")
    axe.prepare(chromium)
    found = []
    for theme in ("light", "dark"):
        chromium.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
        found += [f"{theme}: {line}" for line in axe.violations(chromium, axe.CONTRAST)]
    assert found == []


def test_the_folders_front_door_leads_to_the_book(chromium, site):
    chromium.open(site / "index.html")
    chromium.wait_for("location.href.endsWith('/book/index.html')")


def test_the_gallery_leads_to_every_figure(chromium, site):
    chromium.view(WIDE)
    chromium.open(site / "book" / "gallery.html")
    links = chromium.evaluate(
        "[...document.querySelectorAll('article a')].filter((a) => a.querySelector('img')).map((a) => a.href)"
    )
    assert [link for link in links if "#" not in link] == []
    targets = {link.rpartition("/")[2] for link in links}
    shown = set()
    for page in sorted((site / "notebooks").rglob("*.html")):
        shown |= {f"{page.name}#{name}" for name in re.findall(r'<figure[^>]* id="(fig-[\w-]+)"', page.read_text())}
    assert targets == shown


def test_the_gallery_shows_one_part(chromium, site):
    chromium.view(NARROW)
    chromium.open(site / "book" / "gallery.html")
    shown = "[...document.querySelectorAll('article .sd-card')].filter((card) => card.offsetParent)"
    every = chromium.evaluate(f"{shown}.length")
    chromium.evaluate("document.querySelector('.gallery-filter button[data-part=pruning]').focus()")
    chromium.press("Enter")
    folders = chromium.evaluate(f"{shown}.map((card) => card.querySelector('a[href*=fig-]').href.split('/').at(-2))")
    assert 0 < len(folders) < every
    assert set(folders) == {"pruning"}
    chromium.evaluate("document.querySelector('.gallery-filter button').click()")
    assert chromium.evaluate(f"{shown}.length") == every
