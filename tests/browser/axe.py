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


def prepare(page: Browser) -> None:
    """Load axe into the open page. It must have been measured before: its formulas are gone afterwards."""
    page.evaluate(PRUNE)
    page.evaluate(f"{SCRIPT}; true")


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
