"""The hub path, on local copies in the formats and layouts that the hub has.

Each test runs a process of its own, since ``datasets`` and ``huggingface_hub`` read their environment
at import.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference.data import hub

pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

ROOT = Path(hub.__file__).parent.parent.parent
WIKITEXT = {
    "test": ["", " = Title = \n", "", " First line of the test . \n", ' Quoted " text " – é . \n'],
    "train": [" Trained on . \n", ""],
    "validation": [" Neither . \n"],
}
C4_ROWS = 1200


def wikitext(folder: Path) -> Path:
    """Salesforce/wikitext: a folder a configuration, one parquet file a split, named in the card."""
    import pyarrow.parquet

    config = "wikitext-2-raw-v1"
    (folder / config).mkdir(parents=True)
    for split, lines in WIKITEXT.items():
        table = pyarrow.table({"text": pyarrow.array(lines, pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
    splits = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in WIKITEXT)
    # The card of the hub also states sizes; they are those of the real data, not of this copy.
    info = (
        f"dataset_info:\n- config_name: {config}\n  features:\n  - name: text\n    dtype: string\n  splits:\n"
        + "".join(f"  - name: {split}\n    num_bytes: 1305088\n    num_examples: 4358\n" for split in WIKITEXT)
    )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{splits}{info}---\n# Card\n"
    )
    return folder


def c4(folder: Path) -> Path:
    """allenai/c4: numbered shards of gzipped JSON lines, a configuration a language."""
    (folder / "en").mkdir(parents=True)
    for split, name in (("validation", "c4-validation.00000-of-00008"), ("train", "c4-train.00000-of-01024")):
        with gzip.open(folder / "en" / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            for number in range(C4_ROWS):
                row = {"text": f"{split} document {number} – é", "timestamp": "2019-04-25T12:57:54Z", "url": "http://x"}
                file.write(json.dumps(row) + "\n")
    info = "dataset_info:\n- config_name: en\n  features:\n" + "".join(
        f"  - name: {name}\n    dtype: string\n" for name in ("text", "timestamp", "url")
    )
    splits = "".join(
        f"  - name: {s}\n    num_bytes: 828589180707\n    num_examples: 364868892\n" for s in ("train", "validation")
    )
    data = "".join(f"  - split: {split}\n    path: en/c4-{split}.*.json.gz\n" for split in ("train", "validation"))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: en\n  data_files:\n{data}{info}  splits:\n{splits}---\n# Card\n"
    )
    return folder


def run(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess:
    """Python without a network, with caches of its own."""
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    variables.pop("HF_DATASETS_CACHE", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=variables | environment, capture_output=True, text=True, check=False,
        timeout=300, cwd=tmp_path,
    )  # fmt: skip


def read_all(tmp_path: Path, sources: dict[str, Path | None]) -> dict:
    code = f"""
import json
from reference.data import hub
result = {{}}
for name, source in {{ {", ".join(f"{k!r}: {str(v) if v else None!r}" for k, v in sources.items())} }}.items():
    for part in ("evaluation", "calibration"):
        try:
            result[name + " " + part] = hub.read(name, part, source=source)
        except ValueError as error:
            result[name + " " + part] = "ERROR " + str(error)
print("RESULT" + json.dumps(result))
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("RESULT")[1])


def test_local_copies_are_read_as_the_papers_read_the_hub(tmp_path: Path) -> None:
    sources = {"wikitext2": wikitext(tmp_path / "wikitext"), "c4": c4(tmp_path / "c4")}
    texts = read_all(tmp_path, sources)
    assert texts["wikitext2 evaluation"] == "\n\n".join(WIKITEXT["test"])
    assert texts["wikitext2 calibration"] == "\n\n".join(WIKITEXT["train"])
    for part, split in (("evaluation", "validation"), ("calibration", "train")):
        assert texts[f"c4 {part}"] == " ".join(f"{split} document {number} – é" for number in range(1100))


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    texts = read_all(tmp_path, {"wikitext2": None, "c4": tmp_path / "nowhere"})
    for key, place in (("wikitext2 evaluation", "Salesforce/wikitext"), ("c4 calibration", "nowhere")):
        assert texts[key].startswith("ERROR text '")
        assert place in texts[key]
        assert "take 'code' or 'documentation', which ship" in texts[key]
        assert "\n" not in texts[key]


def test_unknown_names_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    with pytest.raises(ValueError, match="data set 'pile' is not known; there are wikitext2, c4"):
        hub.read("pile", "evaluation")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="text 'c4' needs the package datasets: pip install datasets"):
        hub.read("c4", "evaluation")


def test_a_hub_name_is_found_in_the_cache(tmp_path: Path) -> None:
    """The layout of a downloaded model: models--org--name, refs, snapshots."""
    code = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import os, pathlib, sys
home = pathlib.Path(os.environ["HF_HOME"]) / "hub" / "models--org--tiny-llama"
(home / "refs").mkdir(parents=True)
(home / "refs" / "main").write_text("0" * 40)
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained(home / "snapshots" / ("0" * 40))
from reference.models import loading
from reference import cli
folder = loading.resolve("org/tiny-llama")
assert folder == home / "snapshots" / ("0" * 40), folder
cli.main(["quantize", "org/tiny-llama", "--output", "out", "--group-size", "32", "--no-evaluate", "--json"])
cli.main(["inspect", "org/absent"])
"""
    done = run(tmp_path, code)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["model"] == "org/tiny-llama"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: no such model: there is no folder 'org/absent', and the hub has no model of that name"
    )
    assert "'tutorial' for the shipped model" in last
