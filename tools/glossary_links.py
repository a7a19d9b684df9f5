"""A Sphinx extension: link each glossary term where a page first uses it.

Works on resolved pages, so sources stay plain text, in JupyterLab too. A term is looked for in paragraphs
and list items, outside of links, code, maths, tables, captions, headings and outputs; text that is folded away counts only where
a page uses the term nowhere else. Of terms that overlap the longest wins: in "post-training quantization" the word
"quantization" is not another term. `book/glossary_links.yml` says where a common word is a term, and where it is not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docutils import nodes

GLOSSARY = "book/glossary"
RULES = Path(__file__).resolve().parent.parent / "book" / "glossary_links.yml"
CLASS = "glossary-term"
#: Pages whose terms are linked, and those that are not: the glossary itself, generated lists, docstrings.
PAGES = ("notebooks/*", "book/*")
NOT_PAGES = (GLOSSARY, "book/bibliography", "book/gallery", "book/status", "book/api/*")
#: Parts of a page that are not running text: by class of node, then by its CSS class.
NOT_TEXT = {
    "caption", "citation", "comment", "desc", "dropdown_title", "footnote", "glossary", "image", "index",
    "legend", "literal", "literal_block", "math", "math_block", "pending_xref", "raw", "reference", "rubric", "subtitle",
    "table", "target", "term", "title", "toctree",
}  # fmt: skip
NOT_TEXT_CLASSES = {"cell_output", "pasted-text"}
FOLDED = {"dropdown_main"}
LISTS_OF_NAMES = ("Functions of this chapter",)


class Entry(NamedTuple):
    """A term of the glossary: its place, its tooltip, all its names."""

    anchor: str
    definition: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """Where a term's name is the term.

    Attributes:
        also: more spellings, such as a verb.
        only: the spellings that count, in place of the name and its plural.
        never: phrases in which the name is something else.
        pages: patterns of the pages where it is the term; all pages if empty.
    """

    also: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()


class Found(NamedTuple):
    """A term in a text: from and to which character, and whose; nobody's where a phrase only looks like a term."""

    start: int
    end: int
    anchor: str | None


@dataclass
class Terms:
    """The glossary's terms with the patterns that find them on one page."""

    patterns: list[tuple[re.Pattern[str], str | None]] = field(default_factory=list)

    def find(self, text: str) -> list[Found]:
        """Every use in a text, in its order; longer ones first where they overlap."""
        found = [Found(m.start(), m.end(), anchor) for pattern, anchor in self.patterns for m in pattern.finditer(text)]
        taken: list[Found] = []
        for use in sorted(found, key=lambda f: (f.start - f.end, f.start, f.anchor is None)):
            if all(use.end <= other.start or other.end <= use.start for other in taken):
                taken.append(use)
        return sorted(taken)


def read_rules(path: Path = RULES) -> dict[str, Rule]:
    """Term → rule."""
    rows = yaml.safe_load(path.read_text()) or {}
    return {
        str(name): Rule(**{key: tuple(map(str, value)) for key, value in row.items()}) for name, row in rows.items()
    }


def plurals(name: str) -> list[str]:
    """A name with its plural; an acronym or a name that ends in `s` has none of its own."""
    last = name.split()[-1]
    if re.search(r"[sx]$|[A-Z0-9]$|[^\w]$", last):
        return [name]
    if re.search(r"[^aeiou]y$", name):
        return [name, name[:-1] + "ies"]
    return [name, name + ("es" if re.search(r"(ch|sh)$", name) else "s")]


def pattern(spelling: str) -> re.Pattern[str]:
    """A spelling as a whole word: any case at will, unless the word has capitals after its first letter."""
    words = r"\s+".join(re.escape(word) for word in spelling.split())
    exact = any(re.search(r"[A-Z].*[A-Z0-9]|\d", word) for word in re.split(r"[\s–-]", spelling))
    return re.compile(rf"(?<![\w-]){words}(?![\w-])", 0 if exact else re.IGNORECASE)


def matches(page: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(page, each) for each in patterns)


def terms_of(page: str, entries: list[Entry], rules: Mapping[str, Rule]) -> Terms:
    """What to look for on a page."""
    terms = Terms()
    for entry in entries:
        for name in entry.names:
            rule = rules.get(name, Rule())
            terms.patterns += [(pattern(phrase), None) for phrase in rule.never]
            if rule.pages and not matches(page, rule.pages):
                continue
            spellings = [*(rule.only or plurals(name)), *rule.also]
            terms.patterns += [(pattern(spelling), entry.anchor) for spelling in spellings]
    return terms


def entries_of(glossary: nodes.document) -> list[Entry]:
    """The terms of the glossary page. What follows the arrow in a definition leads to a chapter, and is no part of it."""
    found = []
    for item in glossary.findall(nodes.definition_list_item):
        heads = [child for child in item.children if isinstance(child, nodes.term)]
        definition = next(iter(item.findall(nodes.definition))).astext().partition("→")[0]
        tooltip = re.sub(r"\\(log|mathrm|top)|[\\{}]", r"\1", " ".join(definition.split()))
        names = tuple(" ".join(head.astext().split()) for head in heads)
        found.append(Entry(heads[0]["ids"][0], tooltip, names))
    return found


def join_text(paragraph: nodes.Element) -> None:
    """One text node where a line's end split it in several."""
    for parent in list(paragraph.findall(nodes.Element)):
        joined: list[nodes.Node] = []
        for child in parent.children:
            if isinstance(child, nodes.Text) and joined and isinstance(joined[-1], nodes.Text):
                joined[-1] = nodes.Text(joined[-1].astext() + child.astext())
            else:
                joined.append(child)
        if len(joined) < len(parent.children):
            parent.children = []
            parent.extend(joined)


def ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    above = node.parent
    while above is not None:
        yield above
        above = above.parent


def is_text(node: nodes.Node) -> bool:
    """Whether it is running text."""
    return not any(
        type(above).__name__ in NOT_TEXT
        or NOT_TEXT_CLASSES & set(above.get("classes", ()))
        or (isinstance(above, nodes.section) and above[0].astext() in LISTS_OF_NAMES)
        for above in ancestors(node)
    )


def is_folded(node: nodes.Node) -> bool:
    return any(
        type(above).__name__ in FOLDED or above.get("design_component") == "dropdown" for above in ancestors(node)
    )


def texts(page: nodes.Element) -> list[nodes.Text]:
    """The running text of a page: what is open first, then what is folded."""
    found: list[nodes.Text] = []
    for paragraph in list(page.findall(nodes.paragraph)):
        join_text(paragraph)
        found += [text for text in paragraph.findall(nodes.Text) if is_text(text)]
    return [text for text in found if not is_folded(text)] + [text for text in found if is_folded(text)]


def link(page: nodes.Element, terms: Terms, entries: list[Entry], address: str) -> list[str]:
    """Turn each term's first use into a reference; the anchors of those that were linked.

    Args:
        page: changed in place.
        address: the glossary's, as seen from the page.
    """
    by_anchor = {entry.anchor: entry for entry in entries}
    written = {str(r.get("refuri", "")).rpartition("#")[2] for r in page.findall(nodes.reference)}
    done = {anchor for anchor in by_anchor if anchor in written}  # the author's own links come first
    linked = []
    for text in texts(page):
        content, parts, at = text.astext(), [], 0
        for use in terms.find(content):
            if use.anchor is None or use.anchor in done:
                continue
            done.add(use.anchor)
            linked.append(use.anchor)
            parts.append(nodes.Text(content[at : use.start]))
            reference = nodes.reference(
                "", content[use.start : use.end], internal=True, refuri=f"{address}#{use.anchor}", classes=[CLASS]
            )
            reference["reftitle"] = by_anchor[use.anchor].definition
            parts.append(reference)
            at = use.end
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(content[at:])])
    return linked


def has_links(page: str) -> bool:
    """Whether terms are linked on a page, given as its path without suffix."""
    return matches(page, PAGES) and not matches(page, NOT_PAGES)


def plain_names() -> set[str]:
    """Names that are a term wherever they stand: no rule speaks of them."""
    blocks = re.findall(
        r"^```\{glossary\}\n(.*?)^```", RULES.with_name("glossary.md").read_text(), re.DOTALL | re.MULTILINE
    )
    names = {line for block in blocks for line in block.splitlines() if line and not line.startswith(" ")}
    return names - read_rules().keys()


def link_page(app: Any, page: nodes.document, name: str) -> None:
    if app.builder.format != "html" or not has_links(name):
        return
    entries = entries_of(app.env.get_doctree(GLOSSARY))
    link(page, terms_of(name, entries, read_rules()), entries, app.builder.get_relative_uri(name, GLOSSARY))


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-resolved", link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
