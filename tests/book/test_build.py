"""What `make book` decides: what is executed again, what may be shown, and whether the site is whole."""

import dataclasses

import book_execute
import book_paths
import book_stage
import build_book
import execute_twice
import nbformat
import nbformat.v4 as nb
import pytest
import site_check

BOOK = book_paths.notebooks()
RECORD = book_execute.Record(
    "key", 12.34, 20.0, "2026-01-31", "a CPU, 2 cores", {"python": "3.11.7", "torch": "2.13.0"}
)


@pytest.mark.parametrize("place", ["reference/grid.py", "kernels/k.py", "book/data/a.json", "requirements.lock"])
def test_what_results_depend_on_changes_every_key(tmp_path, monkeypatch, place):
    for name in ("reference/grid.py", "kernels/k.py", "book/data/a.json", "requirements.lock", "n.ipynb", "book/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(book_execute, "ROOT", tmp_path)
    (key,) = book_execute.keys([tmp_path / "n.ipynb"]).values()
    (tmp_path / "book/x.md").write_text("after")
    assert book_execute.keys([tmp_path / "n.ipynb"]) == {tmp_path / "n.ipynb": key}, "prose costs no execution"
    (tmp_path / place).write_text("after")
    assert book_execute.keys([tmp_path / "n.ipynb"]) != {tmp_path / "n.ipynb": key}


def test_a_site_is_the_same_in_whatever_order_its_notebooks_were_executed():
    records = dict.fromkeys(BOOK, RECORD)
    assert build_book.state_of(records) == build_book.state_of(dict(reversed(records.items())))
    other = records | {BOOK[0]: dataclasses.replace(RECORD, key="another")}
    assert build_book.state_of(records) != build_book.state_of(other)


def test_one_notebooks_text_changes_its_key_only(tmp_path, monkeypatch):
    monkeypatch.setattr(book_execute, "ROOT", tmp_path)
    (tmp_path / "requirements.lock").touch()
    paths = [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    for path in paths:
        path.write_text("before")
    before = book_execute.keys(paths)
    paths[0].write_text("after")
    after = book_execute.keys(paths)
    assert [before[path] == after[path] for path in paths] == [False, True]


def notebook(*cells):
    """A notebook of (outputs, tags) pairs."""
    return nb.new_notebook(cells=[nb.new_code_cell("", outputs=o, metadata={"tags": list(t)}) for o, t in cells])


def data(**mime):
    return nb.new_output("display_data", data={kind.replace("_", "/"): text for kind, text in mime.items()})


def printed(text, name="stdout"):
    return nb.new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("output", "tags", "words"),
    [
        (printed("50%|#####", "stderr"), (), "stderr"),
        (nb.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}), (), "widget"),
        (data(image_png="AAAA"), (), "not tagged figure"),
    ],
)
def test_outputs_that_a_page_should_not_show_are_found(output, tags, words):
    (found,) = book_execute.bad_outputs(notebook(([output], tags)))
    assert words in found


def test_ordinary_outputs_pass():
    assert book_execute.bad_outputs(notebook(([printed("1.5")], ()), ([data(image_png="AAAA")], ("figure",)))) == []


def test_two_equal_executions():
    one = notebook(([printed("1.5")], ()), ([printed("0.3 s")], ("timing",)))
    two = notebook(([printed("1.5")], ()), ([printed("0.4 s")], ("timing",)))
    assert execute_twice.differences(one, two) == []


def glued(value):
    output = data(text_plain=value)
    output.metadata = {"scrapbook": {"name": "loss", "mime_prefix": "application/papermill.record/"}}
    output.data = {"application/papermill.record/text/plain": value}
    return output


@pytest.mark.parametrize(
    "outputs", [(printed("1.5"), printed("1.6")), (glued("0.25"), glued("0.26")), (printed("a"), data())]
)
def test_a_number_that_changed_is_found(outputs):
    first, second = (notebook(([output], ())) for output in outputs)
    assert execute_twice.differences(first, second)


def test_a_glued_value_is_named_in_the_difference():
    assert any(
        "loss" in line for line in execute_twice.differences(notebook(([glued("1")], ())), notebook(([glued("2")], ())))
    )


def test_a_fingerprint_is_of_what_must_repeat_wherever_its_cell_stands():
    cells = [([printed("0.25"), data(image_png="one")], ()), ([printed("2 s")], ("timing",))]
    moved = [([], ()), ([printed("0.25"), data(image_png="two")], ()), ([printed("3 s")], ("timing",))]
    assert execute_twice.fingerprint(notebook(*cells)) == execute_twice.fingerprint(notebook(*moved))
    for other in (([printed("0.26")], ()), ([printed("0.25"), glued("1")], ()), ([data(text_plain="0.25")], ())):
        assert execute_twice.fingerprint(notebook(*cells)) != execute_twice.fingerprint(notebook(other))
    texts = [notebook(([data(text_plain=a), data(text_plain=b)], ())) for a, b in (("ab", "c"), ("a", "bc"))]
    assert execute_twice.fingerprint(texts[0]) != execute_twice.fingerprint(texts[1])


@pytest.fixture
def two_books(tmp_path, monkeypatch):
    """Two notebooks; what a first and a second execution of each prints, to be set; the books of each second execution."""
    books = [book_paths.Path("notebooks/a.ipynb"), book_paths.Path("notebooks/b.ipynb")]
    first, second, executed = dict.fromkeys(books, "1"), dict.fromkeys(books, "1"), []

    def write(folder, printing, wanted):
        for book in wanted:
            (folder / book).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook(([printed(printing[book])], ())), folder / book)
        return dict.fromkeys(wanted, (1.0, 1.0))

    def run(wanted, folder):
        executed.append([book.stem for book in wanted])
        return write(folder, second, wanted)

    monkeypatch.setattr(execute_twice, "notebooks", lambda: books)
    monkeypatch.setattr(execute_twice, "ROOT", tmp_path)
    monkeypatch.setattr(execute_twice, "RECORD", tmp_path / "outputs.json")
    monkeypatch.setattr(execute_twice, "SCRATCH", tmp_path / "twice")
    monkeypatch.setattr(book_execute, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(book_execute, "execute", lambda wanted: write(tmp_path / "executed", first, wanted))
    monkeypatch.setattr(book_execute, "run", run)
    return books, first, second, executed


def test_only_outputs_that_are_not_the_recorded_ones_are_executed_again(two_books):
    (a, _), first, second, executed = two_books
    execute_twice.main(["--unrecorded"])  # nothing is recorded yet
    execute_twice.main(["--unrecorded"])  # all is
    first[a] = second[a] = "2"
    execute_twice.main(["--unrecorded"])  # a's number moved
    execute_twice.main([])
    execute_twice.main(["--unrecorded"])
    assert executed == [["a", "b"], ["a"], ["a", "b"]]


def test_outputs_that_do_not_repeat_are_not_recorded(two_books):
    (a, _), first, second, executed = two_books
    execute_twice.main([])
    before = execute_twice.recorded()
    first[a], second[a] = "2", "3"
    for arguments in ([], ["--unrecorded"], ["--unrecorded"]):
        with pytest.raises(SystemExit, match=r"(?s)two executions differ.*a\.ipynb.*-.*2.*\+.*3"):
            execute_twice.main(arguments)
        assert execute_twice.recorded() == before
    assert executed[1:] == [["a", "b"], ["a"], ["a"]]


def test_a_second_execution_that_fails_is_an_error(two_books, monkeypatch):
    monkeypatch.setattr(book_execute, "run", lambda wanted, folder: {})
    with pytest.raises(SystemExit, match="b.ipynb: failed"):
        execute_twice.main(["--unrecorded"])
    assert execute_twice.recorded() == {}


def test_recorded_outputs_are_of_the_books_notebooks():
    assert set(execute_twice.recorded()) <= {book.as_posix() for book in BOOK}


def test_run_times_are_shown():
    table = book_stage.run_times({BOOK[0]: RECORD})
    assert "| 12.3 | 20.0 | 2026-01-31 |\n" in table
    assert f"(/{BOOK[0].as_posix()})" in table
    assert "Machine: a CPU, 2 cores. " in table
    assert "torch 2.13.0" in table


def test_where_machines_differ_each_run_time_names_its_own():
    table = book_stage.run_times({BOOK[0]: RECORD, BOOK[1]: dataclasses.replace(RECORD, machine="another")})
    assert "| 12.3 | 20.0 | 2026-01-31 | a CPU, 2 cores |" in table
    assert "| 12.3 | 20.0 | 2026-01-31 | another |" in table
    assert "Machine:" not in table


def test_the_badge_line_gets_the_measured_time():
    text = (book_paths.ROOT / BOOK[0]).read_text()
    assert "[measured run time]" in text
    shown = book_stage.with_run_time(text, 12.34)
    assert "[ran in 12 s]" in shown
    assert "[measured run time]" not in shown


def test_a_page_that_the_toc_names_must_exist(tmp_path):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: other\n- glob: api/*\n")
    (tmp_path / "index.md").touch()
    with pytest.raises(FileNotFoundError, match="other"):
        book_paths.toc_pages(tmp_path)
    (tmp_path / "other.ipynb").touch()
    assert [str(page) for page in book_paths.toc_pages(tmp_path)] == ["index.md", "other.ipynb"]


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.js").touch()
    (tmp_path / "a.css").write_text("body { background: url(a.png) }")
    (tmp_path / "a.png").touch()
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="a.css?v=1"><link rel="canonical" href="https://example.org/">'
        '<script src="a.js"></script><img src="a.png" alt="a"><img src="data:image/png;base64,AA" alt="b">'
        '<a href="https://example.org/">a link is not loaded</a>'
    )
    return tmp_path


def test_a_whole_site_passes(site):
    assert site_check.problems(site, ["index.html"]) == []


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/a.js"></script>',
        '<script src="//example.org/a.js"></script>',
        '<script type="module">import "https://example.org/a.js"</script>',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<link rel="preload" as="font" href="https://example.org/a.woff2">',
        '<img src="https://example.org/a.svg" alt="a">',
        '<iframe src="https://example.org/"></iframe>',
        '<p style="background: url(https://example.org/a.png)">a</p>',
        '<style>@import "https://example.org/a.css"</style>',
        '<script src="missing.js"></script>',
        '<img src="a.png">',
        '<article><img src="a.png" alt=""></article>',
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_found(site, html):
    (site / "more.html").write_text(html)
    assert site_check.problems(site, [])


def test_a_table_that_is_shown_as_text_is_found(site):
    (site / "more.html").write_text("<p>| block | 0 |\n| — | — |\n| what it adds | 4.99 |</p>")
    (found,) = site_check.problems(site, [])
    assert "shows a table as text" in found
    (site / "more.html").write_text("<p>The norm |x| and the bars a | b.</p><table><tr><td>| a | b |</td></tr></table>")
    assert site_check.problems(site, []) == []


def test_fonts_of_a_style_sheet_are_read(site):
    (site / "b.css").write_text("@font-face { src: url('https://example.org/a.woff2') }")
    assert site_check.problems(site, [])


def test_a_page_that_was_not_built_is_found(site):
    assert site_check.problems(site, ["other.html"]) == ["other.html was not built"]


def test_what_a_cell_prints_is_one_output(tmp_path):
    outputs = [printed("4\n"), printed("3\n"), data(text_plain="x"), printed("2\n")]
    nbformat.write(notebook((outputs, ())), tmp_path / "n.ipynb")
    book_execute.clean(tmp_path / "n.ipynb")
    found = nbformat.read(tmp_path / "n.ipynb", as_version=4).cells[0].outputs
    assert [output.get("text", "image") for output in found] == ["4\n3\n", "image", "2\n"]


def test_a_glued_value_does_not_part_what_a_cell_prints(tmp_path):
    glued = nb.new_output("display_data", data={"application/papermill.record/text/plain": "2"})
    nbformat.write(notebook(([printed("4\n"), glued, printed("3\n"), glued], ())), tmp_path / "n.ipynb")
    book_execute.clean(tmp_path / "n.ipynb")
    found = nbformat.read(tmp_path / "n.ipynb", as_version=4).cells[0].outputs
    assert [output.get("text", "glued") for output in found] == ["4\n3\n", "glued", "glued"]
