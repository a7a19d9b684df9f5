"""Recorded results have a schema, and the cheap ones are computed again."""

import json

import book_paths
import pytest
import recorded
from book_fixtures import RECORDED as GOOD

FILES = recorded.files()


def load(path):
    return json.loads(path.read_text())


def test_every_file_has_the_schema():
    assert [text for path in FILES for text in recorded.breaches(load(path), path.stem)] == []


def test_cheap_results_repeat():
    cheap = [result for result in map(load, FILES) if result.get("cheap")]
    assert {result["name"]: recorded.differences(result) for result in cheap} == {r["name"]: [] for r in cheap}


def test_the_whole_model_record_is_the_benchmarks():
    results = book_paths.ROOT / "benchmarks" / "results" / "whole_model.json"
    assert load(book_paths.ROOT / "book" / "data" / "whole_model.json")["values"] == load(results)["values"]


def test_the_record_of_training_at_once_is_the_benchmarks():
    results = book_paths.ROOT / "benchmarks" / "results" / "lottery_ticket.json"
    assert load(book_paths.ROOT / "book" / "data" / "parallel_training.json")["values"] == load(results)["values"]


def test_every_file_is_data_of_that_kind():
    folder = book_paths.ROOT / "book" / "data"
    assert [p.name for p in folder.rglob("*") if p.is_file() and p not in FILES] == []


def test_a_good_result_is_accepted_and_repeats():
    assert list(recorded.breaches(GOOD, "good")) == []
    assert recorded.differences(GOOD) == []


@pytest.mark.parametrize("field", recorded.TYPES)
def test_a_missing_field_is_found(field):
    assert list(recorded.breaches({k: v for k, v in GOOD.items() if k != field}, "good"))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"values": {}},
        {"values": {"loss": float("nan")}},
        {"values": {"loss": None}},
        {"date": "31.1.2026"},
        {"date": "2026-02-31"},
        {"versions": {"torch": "2.13.0"}},
        {"seed": "none"},
        {"seed": True},
        {"cheap": "yes"},
        {"check": 3},
        {"remark": "?"},
    ],
)
def test_a_wrong_field_is_found(change):
    assert list(recorded.breaches(GOOD | change, "good"))


def test_cheap_needs_a_check():
    assert list(recorded.breaches({k: v for k, v in GOOD.items() if k != "check"}, "good"))


@pytest.mark.parametrize(
    "values",
    [
        {"loss": 0.51, "bits": [4, 3], "method": "none"},
        {"loss": 0.5, "bits": [4, 2], "method": "none"},
        {"loss": 0.5, "bits": [4, 3]},
        {"loss": 0.5, "bits": [4, 3], "method": "some"},
    ],
)
def test_a_result_that_changed_is_found(values):
    assert recorded.differences(GOOD | {"values": values})


def test_the_page_prints_values_command_and_device(tmp_path):
    (tmp_path / "book" / "data").mkdir(parents=True)
    (tmp_path / "book" / "data" / "good.json").write_text(json.dumps(GOOD))
    page = recorded.page(tmp_path)
    assert all(words in page for words in ("One number", "python studies/good.py", "a CPU, 2 cores", "`loss` | 0.5"))
