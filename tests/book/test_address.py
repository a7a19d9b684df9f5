"""The repository's address stands in one place; all others agree, and one command sets them all."""

import shutil

import address
import book_paths
import pytest
import yaml
from chapter_rules import code_cells, load

ROOT = book_paths.ROOT
NEW = "https://github.com/acme/compression-book"


def disagreements(root):
    """Where a copy of the repository does not use the address of its pyproject.toml."""
    url = address.address(root)
    slug = address.slug(url)
    config = yaml.safe_load((root / "_config.yml").read_text())
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    checks = {
        "_config.yml": config["repository"]["url"] == url,
        "CITATION.cff": citation["repository-code"] == url,
        "README.md": f"https://colab.research.google.com/github/{slug}/blob/main/" in (root / "README.md").read_text(),
    }
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        notebook = load(path)
        badge = address.badge_line(path.relative_to(root), url, "")
        checks[f"{path.name}: badge"] = badge in notebook["cells"][0]["source"]
        checks[f"{path.name}: Colab cell"] = code_cells(notebook)[0]["source"] == address.colab_cell(url)
    return [place for place, agrees in checks.items() if not agrees]


@pytest.fixture
def copy(tmp_path):
    for path in address.places(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def test_all_places_agree():
    assert disagreements(ROOT) == []


def test_one_command_sets_all_places(copy):
    old = address.slug(address.address(copy))
    changed = {str(path) for path in address.set_address(NEW, copy)}
    assert {"pyproject.toml", "README.md", "_config.yml", "CITATION.cff"} <= changed
    assert {str(path) for path in book_paths.notebooks()} <= changed
    assert address.address(copy) == NEW
    assert disagreements(copy) == []
    assert [str(path) for path in address.places(copy) if old in path.read_text()] == []


def test_set_and_set_back_restores_everything(copy):
    before = {path: path.read_text() for path in address.places(copy)}
    old = address.address(copy)
    address.set_address(NEW, copy)
    address.set_address(old, copy)
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize("name", ["README.md", "_config.yml", "CITATION.cff", "notebooks/overview.ipynb"])
def test_a_place_that_differs_is_found(copy, name):
    path = copy / name
    path.write_text(path.read_text().replace(address.slug(address.address(copy)), "someone/else"))
    assert disagreements(copy)


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://example.org/a/b", "https://github.com/a", "https://github.com/a/b/c"]
)
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ValueError, match="owner/name"):
        address.slug(url)


def test_a_longer_name_is_left_alone(tmp_path):
    (tmp_path / "pyproject.toml").write_text('Repository = "https://github.com/a/b"\n')
    (tmp_path / "README.md").write_text(
        "https://github.com/a/b-other https://github.com/x/a/b https://github.com/a/b/issues"
    )
    address.set_address(NEW, tmp_path)
    assert (tmp_path / "README.md").read_text() == (
        "https://github.com/a/b-other https://github.com/x/a/b https://github.com/acme/compression-book/issues"
    )
