"""One page of the built site as sheets of paper: what Chromium is told to change before it prints.

A page on paper has no sidebars, no buttons and no folds: answers are open, long lines wrap, and what is wider than the sheet
is drawn smaller. Every element with a name becomes a destination, so that links from other pages find it.
"""

import io
import json
from pathlib import Path

from browser import Browser
from pypdf import PdfReader

INCH, A4 = 25.4, (210, 297)  # millimetres
MARGIN, FOOT = 17, 20
SCALE = 0.84  # 16 CSS pixels are ten points
WIDTH = int((A4[0] - 2 * MARGIN) / INCH * 96 / SCALE)  # CSS pixels of a line

STYLE = """
html { font-size: 16px !important; scroll-padding: 0 !important; }
html, body { background: #fff !important; height: auto !important; }
.bd-article-container, .bd-article, .bd-content, .bd-main, .bd-container, .bd-container__inner {
  display: block !important; max-width: none !important; width: auto !important; padding: 0 !important; margin: 0 !important;
  overflow: visible !important; }
h1 { margin-top: 0 !important; font-size: 2.1rem !important; }
h1, h2, h3, h4, summary, .sd-summary-title, .admonition-title, dt.sig { break-after: avoid; }
h2 + p:has(+ .sd-container-fluid) { break-after: avoid; }
h2 { font-size: 1.6rem !important; } h3 { font-size: 1.3rem !important; }
p, li, dd { orphans: 2; widows: 2; }
figure, tr, mjx-container[display="true"], .sd-card-img-top, .cell_output img, svg { break-inside: avoid; }
.cell_output:has(figure) { break-inside: avoid; }
.sd-card, .admonition, details { break-inside: auto; }
.sd-row > * { break-inside: avoid; }
thead { display: table-header-group; }
.bd-article :not(svg, svg *, mjx-container, mjx-container *) {  /* what scrolls on a screen would not break between sheets */
  overflow: visible !important; }
pre, div[class*="highlight"], .cell, .cell_input, .cell_output { break-inside: auto !important; }
body, .cell_input, div[class*="highlight"] { display: block !important; }
.short { break-inside: avoid !important; }
:not(#above-a-class) { box-shadow: none !important; }  /* an id outranks the theme; Chromium would print each shadow as a picture */
pre, pre *, dt.sig, dt.sig * { white-space: pre-wrap !important; overflow-wrap: anywhere !important; }
pre { max-height: none !important; font-size: 0.8rem !important; line-height: 1.35 !important; }
.highlight, div.cell_output, div.cell_output * { max-height: none !important; }
code, span.pre { overflow-wrap: anywhere; white-space: normal !important; }
.bd-article table { display: table !important; margin-left: 0; font-size: 0.85rem; }
.bd-article :is(td, th) { padding: 0.2rem 0.5rem !important; line-height: 1.35; } .bd-article :is(td, th) p { margin: 0; }
.pst-scrollable-table-container, div.math, mjx-container { overflow: visible !important; }
img, svg { max-width: 100% !important; height: auto; }
.bd-article svg.map { min-width: 0; }
a { overflow-wrap: anywhere; }
"""

#: Page furniture, and buttons that paper cannot press.
LEFT_OUT = (
    "header, footer, nav, script, .bd-header, .bd-header-article, .bd-sidebar, .bd-sidebar-primary, .bd-sidebar-secondary, "
    ".headerlink, .copybtn, .prev-next-area, .prev-next-footer, .bd-footer, .bd-footer-content, #searchbox, .skip-link, "
    ".pst-skip-link, #jb-print-docs-body, .pst-async-banner-revealer, .back-to-top, #pst-back-to-top, #print-main-content, "
    "#pst-scroll-pixel-helper, .pst-scroll-pixel-helper, dialog, .sd-summary-state-marker, "
    ".sd-summary-chevron-right, .sd-summary-chevron-down, .sd-summary-chevron-up"
)

PREPARE = """((leftOut, style) => {
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = "light";
  for (const part of document.querySelectorAll(leftOut)) part.remove();
  for (const link of document.querySelectorAll("a.download")) {  // the notebook is not beside the paper
    if (link.previousSibling?.nodeType === 3) link.previousSibling.remove();
    link.remove();
  }
  for (const fold of document.querySelectorAll("details.hide")) {  // a folded cell is a cell
    fold.querySelector("summary").remove();
    fold.replaceWith(...fold.childNodes);
  }
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const fold of document.querySelectorAll(".toggle-hidden")) fold.classList.remove("toggle-hidden");
  document.head.append(Object.assign(document.createElement("style"), {textContent: style}));
  const article = document.querySelector("article");
  document.body.replaceChildren(article);
  article.classList.add("bd-content");
  const width = article.clientWidth;
  const wide = [];  // all is measured before anything is changed, or each change would lay the page out again
  for (const part of article.querySelectorAll("table, mjx-container[display='true']")) {
    const inner = part.querySelector(":scope > mjx-math") ?? part;
    const room = (part.parentElement.closest("dd, li, .admonition, details, figure") ?? article).clientWidth;
    const ratio = room / Math.max(1, inner.scrollWidth, inner.getBoundingClientRect().width);
    if (ratio < 0.999 && !part.parentElement.closest("table")) wide.push([part, ratio * 0.98]);
  }
  const short = [...article.querySelectorAll("pre")].filter((code) => code.clientHeight < 240);
  for (const [part, ratio] of wide) {
    if (ratio < 0.6 && part.tagName === "TABLE") part.style.overflowWrap = "anywhere";  // smaller could not be read
    else part.style.zoom = ratio;
  }
  for (const code of short) (code.closest(".cell_input") ?? code).classList.add("short");
  // Chromium would shrink the whole page for one part that is too wide, and not say so: places would be wrong.
  const spill = document.documentElement.scrollWidth / document.documentElement.clientWidth;
  if (spill > 1) article.style.zoom = 0.995 / spill;
  const names = [...article.querySelectorAll("[id]")].filter((e) => !e.closest("mjx-container, svg")).map((e) => e.id);
  for (const name of names) {  // Chromium makes a destination of whatever a link on the page names, shown or not
    const link = Object.assign(document.createElement("a"), {href: "#" + encodeURIComponent(name)});
    link.style.display = "none";
    article.append(link);
  }
  const broken = [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src);
  for (const image of document.images) image.loading = "eager";
  const sections = [...article.querySelectorAll("section[id] > h2")].map((h) => [h.parentElement.id, h.textContent.trim()]);
  return {spill, title: article.querySelector("h1")?.textContent.trim() ?? "", sections, broken};
})"""


def sheets(browser: Browser, **options: object) -> bytes:
    """What the browser shows, as a PDF on A4."""
    width, height = (side / INCH for side in A4)
    side, foot = MARGIN / INCH, FOOT / INCH
    margins = {"marginTop": side, "marginBottom": foot, "marginLeft": side, "marginRight": side}
    return browser.pdf(paperWidth=width, paperHeight=height, scale=SCALE, generateTaggedPDF=False, **margins, **options)


def print_page(browser: Browser, path: Path) -> tuple[PdfReader, dict]:
    """A page of the site on paper.

    Args:
        browser: an open browser.
        path: the page's HTML file.

    Returns:
        The PDF of this page, whose named destinations are the page's ids, and a dictionary: `title`, and `sections` as pairs
        of id and heading.

    Raises:
        ValueError: an image of the page is missing.
    """
    browser.view(WIDTH)
    browser.send(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "light"}]
    )
    browser.open(path)
    found = browser.evaluate(f"{PREPARE}({json.dumps(LEFT_OUT)}, {json.dumps(STYLE)})")
    if found["broken"]:
        raise ValueError(f"{path} shows images that are not there: {', '.join(found['broken'])}")
    return PdfReader(io.BytesIO(sheets(browser))), found
