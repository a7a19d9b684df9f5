"""Run axe-core in a page, and leave out what a person has judged."""

from fnmatch import fnmatch
from pathlib import Path

from browser import Browser

HERE = Path(__file__).parent
SCRIPT = (HERE / "vendor" / "axe.min.js").read_text()
RULES = '{type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}'
STRUCTURE = f'{RULES}, rules: {{"color-contrast": {{enabled: false}}}}'
CONTRAST = '{type: "rule", values: ["color-contrast"]}'

# axe compares every element with what lies behind it. Thousands of coloured words of code, of symbols in formulas and of rows
# in tables have a few dozen styles between them: one word of each style in each kind of block stays, and a table's first rows.
PRUNE = """(() => {
  const seen = new Set();
  document.querySelectorAll("mjx-container").forEach((formula) => formula.remove());
  document.querySelectorAll("pre span, dl.py dt span").forEach((word) => {
    const key = `${word.className}|${word.parentElement.className}|${word.closest("div[class]")?.className}`;
    if (seen.has(key)) word.remove();
    seen.add(key);
  });
  document.querySelectorAll("tr:nth-child(n+25), td li:nth-child(n+9)").forEach((row) => row.remove());
  return true;
})()"""


# For colours alone, one text of each style is enough: what has the same tags, classes and own styles all the way up, and is
# painted alike in both themes, has the same contrast. The other texts go, and the elements that then hold nothing. Rows of
# tables stay, since their ground changes from row to row; so does what has a picture or colour of its own behind its text.
THIN = """(() => {
  const root = document.documentElement, theme = root.dataset.theme, paths = new Map([[root, ""]]);
  const path = (e) => {
    if (!paths.has(e)) {
      const row = e.tagName === "TR" ? [...e.parentElement.children].indexOf(e) % 2 : "";
      paths.set(e, `${path(e.parentElement)}/${e.tagName}.${e.className}.${e.getAttribute("style") ?? ""}.${row}.${e.open ?? ""}`);
    }
    return paths.get(e);
  };
  const texts = [...document.body.querySelectorAll("*")].filter(
    (e) => !["SCRIPT", "STYLE"].includes(e.tagName) && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const painted = texts.map(path);
  for (const name of ["light", "dark"]) {
    root.dataset.theme = name;
    texts.forEach((e, i) => {
      const s = getComputedStyle(e);
      painted[i] += `|${s.color} ${s.backgroundColor} ${s.fontSize} ${s.fontWeight} ${s.opacity} ${s.display} ${s.visibility}`;
    });
  }
  root.dataset.theme = theme;
  const seen = new Set(), kept = new Set();
  texts.forEach((e, i) => {
    if (!seen.has(painted[i])) for (let up = e; up && !kept.has(up); up = up.parentElement) kept.add(up);
    seen.add(painted[i]);
  });
  const needed = "script, style, link, head, head *, tr, td, th, input, button, select, svg, svg *";
  [...document.body.querySelectorAll("*")].reverse().forEach((e) => {
    if (!kept.has(e) && !e.matches(needed) && !e.children.length) e.remove();
  });
  return seen.size;
})()"""


def prepare(page: Browser) -> None:
    """Load axe into the open page. It must have been measured before: its formulas are gone afterwards."""
    page.evaluate(PRUNE)
    page.evaluate(f"{SCRIPT}; true")


def thin(page: Browser) -> int:
    """Leave one text of each style; how many. Only contrast may be judged afterwards.

    The theme's scripts no longer hear of a new size: they would look for what is gone, and a slow machine would tell of the
    error when the next page is open.
    """
    left = page.evaluate(THIN)
    page.evaluate("void window.addEventListener('resize', (e) => e.stopImmediatePropagation(), true)")
    return left


def violations(page: Browser, only: str = RULES) -> list[str]:
    """The serious and critical ones, `rule: element`, without those of `allowed.txt`."""
    found = page.evaluate(
        f'axe.run(document, {{resultTypes: ["violations"], runOnly: {only}}})'
        ".then((r) => r.violations.filter((v) => ['serious', 'critical'].includes(v.impact))"
        ".flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target.join(' ')}: ${n.any[0]?.message ?? v.help}`)))"
    )
    return [line for line in found if not any(fnmatch(line, pattern) for pattern in allowed())]


def allowed(path: Path = HERE / "allowed.txt") -> list[str]:
    """The patterns of the allow-file: `rule: element*` a line, `#` begins a comment."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
