"""The glossary: every entry leads to its chapter, and a page links each term once, where it first uses it."""

import re
import subprocess
import sys

import book_paths
import glossary_check
import glossary_links
import pytest
from docutils import nodes
from glossary_links import Entry, Rule

ROOT = book_paths.ROOT
TEXT = (ROOT / "book/glossary.md").read_text()
ENTRIES = [
    Entry("term-grid", "The values that codes can stand for.", ("grid",)),
    Entry("term-quantization", "Fewer bits.", ("quantization",)),
    Entry("term-post-training-quantization", "Without training.", ("post-training quantization",)),
    Entry("term-GPTQ", "Column by column.", ("GPTQ",)),
    Entry("term-density", "The fraction kept.", ("density",)),
    Entry("term-key-value-cache", "Kept keys and values.", ("key-value cache", "KV cache")),
    Entry("term-N-M-sparsity", "Two of four.", ("N:M sparsity",)),
]


def paragraph(*parts):
    return nodes.paragraph("", "", *(nodes.Text(part) if isinstance(part, str) else part for part in parts))


def linked(*children, rules=None, page="notebooks/a/b"):
    """The texts of the links that a page of these nodes gets."""
    section = nodes.section("", nodes.title("", "A title with a grid"), *children)
    terms = glossary_links.terms_of(page, ENTRIES, rules or {})
    glossary_links.link(section, terms, ENTRIES, "../book/glossary.html")
    return [r.astext() for r in section.findall(nodes.reference) if glossary_links.CLASS in r.get("classes", ())]


def test_the_first_use_is_a_link_with_the_definition():
    page = nodes.section("", paragraph("Lay a grid, then another grid."), paragraph("A grid."))
    glossary_links.link(page, glossary_links.terms_of("notebooks/a", ENTRIES, {}), ENTRIES, "../book/glossary.html")
    (reference,) = page.findall(nodes.reference)
    assert reference["refuri"] == "../book/glossary.html#term-grid"
    assert reference["reftitle"] == "The values that codes can stand for."
    assert page.astext() == "Lay a grid, then another grid.\n\nA grid.", "no word is lost"
    assert page[0][0].astext() == "Lay a ", "the first of the three"


def test_plurals_case_and_synonyms():
    assert linked(paragraph("Grids of several densities, and a KV cache.")) == ["Grids", "densities", "KV cache"]
    assert linked(paragraph("gptq is the name of a module, GPTQ the method.")) == ["GPTQ"]
    assert linked(paragraph("The KV cache is the key-value cache.")) == ["KV cache"], "two names, one entry"


def test_the_longest_term_wins_and_a_part_of_a_word_is_none():
    assert linked(paragraph("Post-training quantization.")) == ["Post-training quantization"]
    assert linked(paragraph("A gridlock, an off-grid house, a grid-like street.")) == []


def test_a_term_across_the_end_of_a_line():
    assert linked(paragraph("post-training", "\n", "quantization")) == ["post-training\nquantization"]


@pytest.mark.parametrize(
    "part",
    [
        nodes.literal("", "grid"),
        nodes.math("", "grid"),
        nodes.reference("", "grid", refuri="x"),
        nodes.inline("", "grid", classes=["pasted-text"]),
    ],
)
def test_code_maths_links_and_pasted_numbers_stay(part):
    assert linked(paragraph("See ", part, ".")) == []
    assert linked(paragraph("See ", part, "."), paragraph("A grid.")) == ["grid"]


@pytest.mark.parametrize("kind", [nodes.caption, nodes.legend, nodes.entry])
def test_captions_and_tables_stay(kind):
    inner = kind("", paragraph("A grid.")) if kind is not nodes.caption else nodes.caption("", "A grid.")
    if kind is nodes.entry:
        inner = nodes.table("", nodes.tgroup("", nodes.tbody("", nodes.row("", inner))))
    assert linked(inner) == []


def test_lists_of_names_stay_and_list_items_do_not():
    item = nodes.list_item("", paragraph("A grid."))
    assert linked(nodes.bullet_list("", item.deepcopy())) == ["grid"]
    names = nodes.section("", nodes.title("", "Functions of this chapter"), nodes.bullet_list("", item))
    assert linked(names) == []


def test_folded_text_comes_last():
    folded = nodes.container("", paragraph("A grid, folded."), design_component="dropdown")
    section = nodes.section("", folded, paragraph("A grid, open."))
    glossary_links.link(section, glossary_links.terms_of("notebooks/a", ENTRIES, {}), ENTRIES, "g")
    (reference,) = section.findall(nodes.reference)
    assert reference.parent.astext() == "A grid, open."
    assert linked(folded.deepcopy()) == ["grid"]


def test_rules():
    rules = {
        "grid": Rule(never=("grid search",), pages=("notebooks/*",)),
        "quantization": Rule(also=("quantise",)),
        "density": Rule(only=("weight density",)),
        "N:M sparsity": Rule(also=("2:4",)),
    }
    words = paragraph("A grid search quantises nothing; quantise on a grid of some density, 2:4.")
    assert linked(words, rules=rules) == ["quantise", "grid", "2:4"]
    assert linked(paragraph("A grid."), rules=rules, page="book/x") == []
    assert linked(paragraph("Weight density."), rules=rules) == ["Weight density"]


def test_a_link_of_the_author_is_the_first_use():
    own = nodes.reference("", "grid", refuri="../book/glossary.html#term-grid")
    assert linked(paragraph("A ", own, ", and a grid.")) == []


def test_every_rule_is_of_a_term_and_no_term_is_there_twice():
    names = re.findall(
        r"^(?! |#|`|$)(.+)$", "".join(re.findall(r"```\{glossary\}\n(.*?)```", TEXT, re.DOTALL)), re.MULTILINE
    )
    assert len(names) == len({name.lower() for name in names})
    assert set(glossary_links.read_rules()) <= set(names)


def test_every_entry_names_where_it_is_explained():
    for block in re.findall(r"```\{glossary\}\n(.*?)\n```", TEXT, re.DOTALL):
        for definition in re.findall(r"^  (.+)$", block, re.MULTILINE):
            (target,) = re.findall(r"→ \[[^\]]+\]\(([^)#]+)(?:#[\w-]+)?\)$", definition)
            assert (ROOT / "book" / target).is_file(), definition
            assert len(definition.partition("→")[0]) < 330, f"a definition is one or two sentences: {definition}"


PAGES = {
    "book/glossary.md": """# Glossary

```{glossary}
roofline
  The lesser of $2^b$ and another. → [one](../notebooks/one.md)

cache
KV cache
  What is kept. → [one](../notebooks/one.md)
```
""",
    "notebooks/one.md": "# One roofline\n\nA `roofline` is a roofline.\n\n- KV cache\n\n| cache |\n|---|\n| roofline |\n",
    "book/index.md": "# Start\n\n```{toctree}\nglossary\n../notebooks/one\n```\n\nNo {term}`roofline`, then rooflines.\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small book, built by Sphinx with the extension."""
    root = tmp_path_factory.mktemp("site")
    for name, text in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "conf.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "extensions = ['myst_parser', 'glossary_links']\n"
        "myst_enable_extensions = ['dollarmath']\n"
        "root_doc = 'book/index'\nhtml_theme = 'basic'\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(root), str(root / "html")]
    subprocess.run(command, check=True, capture_output=True)
    for page in (root / "html").rglob("*.html"):  # the theme of the book puts its text into an article
        page.write_text(page.read_text().replace('<div class="body"', '<article class="body"'))
    return root / "html"


def test_a_built_site_links_each_term_once(site):
    assert glossary_check.names(site) == {"roofline": "term-roofline", "cache": "term-cache", "KV cache": "term-cache"}
    page = (site / "notebooks/one.html").read_text()
    found = re.findall(r'<a class="glossary-term[^"]*" href="([^"]*)" title="([^"]*)">([^<]*)</a>', page)
    assert found == [
        ("../book/glossary.html#term-roofline", "The lesser of 2^b and another.", "roofline"),
        ("../book/glossary.html#term-cache", "What is kept.", "KV cache"),
    ]
    assert "glossary-term" not in (site / "book/glossary.html").read_text()
    assert "glossary-term" not in (site / "book/index.html").read_text(), "the author's link comes first"
    pages = ["notebooks/one.html", "book/index.html"]
    assert glossary_check.problems(site, pages, {"roofline", "cache", "KV cache"}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("#term-roofline", "#term-nothing"), "no entry"),
        ((' title="What is kept."', ""), "no definition"),
        (("is a <a", "is a roofline, a <a"), ""),
        (
            ('<a class="glossary-term reference internal" href="../book/glossary.html#term-cache"', "<a"),
            "does not link it",
        ),
        (("#term-cache", "#term-roofline"), "2 times"),
    ],
)
def test_what_is_wrong_on_a_built_page_is_found(site, change, words):
    page = (site / "notebooks/one.html").read_text().replace(*change)
    if words == "does not link it":
        page = re.sub(r"<a title=[^>]*>(KV cache)</a>", r"\1", page)
    found = glossary_check.problems_of("one", page, glossary_check.names(site), {"roofline", "cache", "KV cache"})
    assert any(words in problem for problem in found) if words else not found
