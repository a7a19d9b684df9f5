"""The wheel, installed outside the repository and used in an empty folder: commands, imports of all chapters, whole chapters."""

import ast
import subprocess
import zipfile
from email.parser import Parser

import book_paths
import chapter_rules
import installed
import pytest
from packaging.requirements import Requirement

ROOT = book_paths.ROOT
#: A short chapter that reads many recorded results and runs Triton's kernels; by hand others were executed so too.
WHOLE = "notebooks/advanced/kernels.ipynb"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source = installed.copy_package(tmp_path_factory.mktemp("source"))
    return installed.build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def call(built, tmp_path_factory):
    """Run the new environment's Python in an empty folder; what it printed."""
    python = installed.install(built, tmp_path_factory.mktemp("environment"))
    folder = tmp_path_factory.mktemp("empty")

    def run(*arguments, **variables):
        outcome = subprocess.run(
            [python, *arguments], cwd=folder, env=installed.outside(**variables), capture_output=True, text=True
        )
        assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-4000:]
        return outcome.stdout

    run.folder = folder
    run.python = python
    return run


def test_the_wheel_asks_for_ranges(built):
    """A pin would replace Colab's own torch or numpy."""
    with zipfile.ZipFile(built) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "model-compression-reference"
    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert {"torch", "transformers"} <= {requirement.name for requirement in needed}
    assert [str(r) for r in needed if any(s.operator in ("==", "===") for s in r.specifier)] == []


def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(built) as archive:
        held = set(archive.namelist())
    places = {"reference": "reference", "kernels": "reference/kernels", "book/data": "reference/recorded"}
    for place, inside in places.items():
        files = [path for path in book_paths.files_below(ROOT / place) if path.suffix not in (".md", ".html")]
        assert files
        wanted = {f"{inside}/{path.relative_to(ROOT / place).as_posix()}" for path in files}
        assert sorted(wanted - held) == []
    assert {"reference/kernels/w4a16.py", "reference/kernels/__init__.py"} <= held
    assert [name for name in held if name.startswith("kernels/")] == []  # that name belongs to PyPI's package


def test_it_is_the_wheel_that_is_imported(call):
    where = call("-c", "import reference, reference.kernels; print(reference.__file__, reference.kernels.__file__)")
    assert [path.startswith(str(call.python.parent.parent)) for path in where.split()] == [True, True]


def test_the_command_explains_itself(call):
    said = call("-m", "reference", "--help")
    for command in ("quantize", "evaluate", "prune", "compress", "inspect", "workflow"):
        assert command in said


IMPORT = (ast.Import, ast.ImportFrom)


def imports(notebook):
    """The first code cell, and then every import of a chapter's cells, as one program."""
    first, *cells = chapter_rules.code_cells(notebook)
    found = [node for cell in cells for node in ast.walk(ast.parse(cell["source"])) if isinstance(node, IMPORT)]
    return "\n".join([first["source"], *map(ast.unparse, found)])


def test_every_chapters_first_cell_and_imports(call):
    """One process for all chapters: each in a namespace of its own."""
    programs = {str(path): imports(chapter_rules.load(ROOT / path)) for path in book_paths.notebooks()}
    assert len(programs) > 20
    assert all("reference" in program for program in programs.values())
    lines = [f"exec(compile({text!r}, {path!r}, 'exec'), {{}}); print({path!r})" for path, text in programs.items()]
    assert call("-c", "\n".join(lines)).split() == list(programs)


def test_a_model_quantised_there_loads_in_transformers(call):
    call("-m", "reference", "quantize", "tutorial", "--bits", "4", "--tokens", "512", "--output", "small")
    program = (
        "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('small')\n"
        "ids = AutoTokenizer.from_pretrained('small')('def f(x):', return_tensors='pt').input_ids\n"
        "print(bool(torch.isfinite(model(ids).logits).all()), model.config.quantization_config.quant_method.value)"
    )
    assert call("-c", program).split()[-2:] == ["True", "compressed-tensors"]


def test_a_whole_chapter(call):
    """As a reader who downloaded it runs it: in a folder with nothing else."""
    target = call.folder / WHOLE.rpartition("/")[2]
    target.write_bytes((ROOT / WHOLE).read_bytes())
    settings = call.folder / "pytest.ini"
    settings.write_text("[pytest]\n")
    options = ["-q", "--nbmake", "--nbmake-timeout=400", "-p", "no:cacheprovider", "-c", str(settings)]
    assert "1 passed" in call("-m", "pytest", *options, str(target), TRITON_INTERPRET="")


def test_no_chapter_reads_the_repository():
    """Files come with the package, so a chapter names none of the repository's."""
    for path in book_paths.notebooks():
        text = "\n".join(cell["source"] for cell in chapter_rules.code_cells(chapter_rules.load(ROOT / path)))
        for place in ("book/data", "studies/", "../", "tests/", "tools/"):
            assert place not in text, f"{path} reads {place}"
