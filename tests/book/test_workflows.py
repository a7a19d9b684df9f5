"""What runs elsewhere, on GitHub and before a commit, only calls what exists here."""

import re

import book_paths
import pytest
import yaml

ROOT = book_paths.ROOT
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def steps(path):
    """The shell commands of a workflow."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_there_are_three():
    assert [path.stem for path in WORKFLOWS] == ["ci", "pages", "weekly"]


def test_the_checks_are_those_of_the_repository():
    assert ".ci/run" in steps(ROOT / ".github" / "workflows" / "ci.yml")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_calls_exists(path):
    text = "\n".join(steps(path))
    for target in re.findall(r"\bmake ([a-z]+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for script in re.findall(r"\b(tools/\w+\.py)", text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_little_else(path):
    wanted = yaml.safe_load(path.read_text())["permissions"]
    assert set(wanted) <= {"contents", "pages", "id-token"}
    assert wanted["contents"] == "read"


def test_each_hook_is_a_program_of_the_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]:
        program, *rest = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        assert all((ROOT / part).is_file() for part in rest if part.startswith("tools/"))


def test_every_make_target_is_listed_by_help():
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    assert [t for t in phony if not re.search(rf"^{t}:.*## ", MAKEFILE, re.MULTILINE)] == []
