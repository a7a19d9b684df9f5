"""Check a built site's links to the glossary: each leads to a term, none is there twice, and no plain use is left without.

Reads the HTML, so that it shares nothing with `glossary_links`, which works on Sphinx's pages.
"""

import re
from collections import Counter
from collections.abc import Set
from pathlib import Path

from bs4 import BeautifulSoup, Tag

GLOSSARY = Path("book/glossary.html")
#: What a page shows that is not its running text.
NOT_TEXT = ".cell_output, .pasted-text, table, figure, dl.py, a, code, pre, span.math, div.math, nav, script, summary"


def names(html: Path) -> dict[str, str]:
    """Name → anchor of its entry; further names of an entry share the anchor of its first."""
    page = BeautifulSoup((html / GLOSSARY).read_text(), "lxml")
    found, anchor = {}, ""
    for head in page.select("dl.glossary > dt, dl.glossary > dd"):
        if head.name == "dd":
            anchor = ""
            continue
        anchor = anchor or str(head["id"])
        for link in head.select("a.headerlink"):
            link.decompose()
        found[" ".join(head.get_text().split())] = anchor
    return found


def running_text(article: Tag) -> str:
    """The text of an article's paragraphs; formulas, code, tables and what is linked already are taken out of the article."""
    for section in article.select("section[id^='functions-of-this-chapter']"):
        section.decompose()
    for part in article.select(NOT_TEXT):
        part.decompose()
    return "\n".join(" ".join(paragraph.get_text(" ").split()) for paragraph in article.find_all("p"))


def problems_of(page: str, text: str, terms: dict[str, str], plain: Set[str]) -> list[str]:
    """What is wrong on one page.

    Args:
        page: its name, for the messages.
        text: its HTML.
        terms: name → anchor.
        plain: names that are a term wherever they stand.
    """
    article = BeautifulSoup(text, "lxml").find("article")
    if not isinstance(article, Tag):
        return []
    links = article.select("a.glossary-term")
    counts = Counter(str(link["href"]).rpartition("#")[2] for link in links)
    found = [f"{page}: links {anchor} {count} times" for anchor, count in counts.items() if count > 1]
    found += [f"{page}: {anchor} is no entry of the glossary" for anchor in counts if anchor not in terms.values()]
    found += [f"{page}: the link on {link.get_text()!r} has no definition" for link in links if not link.get("title")]
    linked = {str(link["href"]).rpartition("#")[2] for link in article.select("a[href*='glossary.html#']")}
    rest = running_text(article)
    for name in sorted(terms, key=len, reverse=True):
        # A longer name hides the shorter ones in it, so that they are taken out as they are looked for.
        rest, uses = re.subn(
            rf"(?<![\w-]){re.escape(name)}(?![\w-])", " ", rest, flags=re.IGNORECASE if name.islower() else 0
        )
        if uses and name in plain and terms[name] not in linked:
            found.append(f"{page}: uses {name!r} and does not link it")
    return found


def problems(html: Path, pages: list[str], plain: Set[str]) -> list[str]:
    """What is wrong on the named pages of a site."""
    terms = names(html)
    found = [problem for page in pages for problem in problems_of(page, (html / page).read_text(), terms, plain)]
    return found if terms else [*found, "the glossary has no entries"]
