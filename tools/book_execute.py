"""Execute the book's notebooks, each exactly once, with the network off.

A notebook is copied to a scratch folder with the repository's layout, run there by nbmake, and kept in
`.cache/book/executed` beside a record of its key and run time. The key hashes everything that its outputs
depend on; a notebook whose key is unchanged is not run again.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import book_paths
import nbformat
from book_paths import CACHE, ROOT, digest, files_below

EXECUTED = CACHE / "executed"
#: Seconds that a chapter may take on the processors that the chapters were written on. The same notebook was seen to take 1.7
#: times as long on others, and on a rented one from day to day: the build stops only where that does not explain it.
AIM = 120.0
LIMIT = 1.75 * AIM
GLUED = "application/papermill.record/"  # the prefix of the kinds of an output that only keeps a value
CELL_TIMEOUT = 400  # seconds; a hanging cell ends here, a chapter over the limit fails with its own message
TOOLS = (ROOT / "tools" / "book_execute.py", ROOT / "tools" / "processor_time.py", ROOT / "tools" / "offline")
#: The C library keeps what tensors free, in large pages. By default it hands each megabyte back to the system, which clears it
#: before the next tensor gets it: 15 to 25 % of the time of a forward pass. Other C libraries ignore these.
MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "64000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Record:
    """One execution of one notebook."""

    key: str
    seconds: float  # processor time of the kernel, which has one thread
    elapsed: float
    date: str
    machine: str
    versions: dict[str, str]


def machine() -> str:
    """Processor, cores that may be used, and system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}"


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {p: version(p) for p in ("torch", "transformers", "numpy")}


def keys(notebooks: Iterable[Path]) -> dict[Path, str]:
    """The key of each notebook: itself, the package, the locked environment, the recorded data."""
    shared = digest(
        files_below(ROOT / "reference", ROOT / "kernels", ROOT / "book" / "data", ROOT / "requirements.lock", *TOOLS),
        platform.python_version(),
    )
    return {notebook: digest([ROOT / notebook], shared) for notebook in notebooks}


def record_path(notebook: Path) -> Path:
    return (EXECUTED / notebook).with_suffix(".json")


def read_record(notebook: Path) -> Record | None:
    path = record_path(notebook)
    if not path.is_file() or not (EXECUTED / notebook).is_file():
        return None
    return Record(**json.loads(path.read_text()))


def environment() -> dict[str, str]:
    """One thread a worker so that numbers repeat and two workers fit two cores; no network; no personal settings."""
    offline = os.pathsep.join(filter(None, [str(ROOT / "tools" / "offline"), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": offline,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **MEMORY,
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # no widgets in a printed page
        "TOKENIZERS_PARALLELISM": "false",
        "IPYTHONDIR": str(CACHE / "ipython"),
        "JUPYTER_CONFIG_DIR": str(CACHE / "jupyter"),
    }


def run(notebooks: list[Path], folder: Path) -> dict[Path, tuple[float, float]]:
    """Execute copies of `notebooks` in `folder`, in place.

    Returns:
        Processor and elapsed seconds of each notebook that ran to its end. pytest prints the traceback of the others.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for notebook in notebooks:
        (folder / notebook).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / notebook, folder / notebook)
    if (ROOT / "book" / "data").is_dir():
        shutil.copytree(ROOT / "book" / "data", folder / "book" / "data")
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n")  # an own file: the repository's options and conftest stay outside
    shutil.copyfile(ROOT / "tools" / "processor_time.py", folder / "conftest.py")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    command += ["-q", "--nbmake", "--overwrite", f"--nbmake-timeout={CELL_TIMEOUT}", f"--junitxml={report}"]
    command += ["-n", str(min(2, len(notebooks))), *map(str, notebooks)]
    subprocess.run(command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL)
    passed = {
        case.get("classname"): (_processor(case), float(case.get("time", "nan")))
        for case in ElementTree.parse(report).iter("testcase")
        if len(case.findall("failure") + case.findall("error")) == 0
    }
    names = {notebook: ".".join(notebook.parts) for notebook in notebooks}
    return {notebook: passed[name] for notebook, name in names.items() if name in passed}


def _processor(case: ElementTree.Element) -> float:
    return sum(float(p.get("value", "nan")) for p in case.iter("property") if p.get("name") == "processor")


def clean(path: Path) -> None:
    """Drop the time stamps that the executor leaves in cells, and join what a cell printed: how it came in is a matter of time."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    nbformat.write(notebook, path)


def _joined(outputs: list) -> list:
    """The outputs of a cell, neighbours of one stream as one; a glued value between them, which no page shows, parts none."""
    joined: list = []
    last = None  # that is shown
    for output in outputs:
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
            continue
        joined.append(output)
        if not any(kind.startswith(GLUED) for kind in output.get("data", {})):
            last = output
    return joined


def bad_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """What an executed notebook shows that a printed page cannot, or should not."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            kinds = output.get("data", {})
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell {number} writes to stderr: {output.text.strip()[:200]!r}")
            if any("widget" in kind for kind in kinds):
                found.append(f"cell {number} shows a widget")
            if any(kind.startswith("image/") for kind in kinds) and "figure" not in cell.metadata.get("tags", []):
                found.append(f"cell {number} shows an image and is not tagged figure")
    return found


def execute(notebooks: list[Path]) -> dict[Path, Record]:
    """Run what is stale; the record of every notebook.

    Raises:
        SystemExit: a notebook failed, was too slow, or shows what it should not. The others' results are kept.
    """
    wanted = keys(notebooks)
    records = {n: record for n in notebooks if (record := read_record(n)) and record.key == wanted[n]}
    stale = [notebook for notebook in notebooks if notebook not in records]
    print(f"{len(notebooks)} notebooks, {len(stale)} to execute", flush=True)
    if not stale:
        return records
    scratch = CACHE / "run"
    times = run(stale, scratch)
    problems = [f"{n}: failed, see above" for n in stale if n not in times]
    today = datetime.now(timezone.utc).date().isoformat()
    for notebook, (seconds, elapsed) in times.items():
        clean(scratch / notebook)
        bad = bad_outputs(nbformat.read(scratch / notebook, as_version=4))
        if min(seconds, elapsed) > LIMIT:
            bad.append(f"took {seconds:.0f} s of processor time, at most {LIMIT:.0f} s")
        problems += [f"{notebook}: {text}" for text in bad]
        if not bad:
            records[notebook] = Record(
                wanted[notebook], round(seconds, 1), round(elapsed, 1), today, machine(), versions()
            )
            (EXECUTED / notebook).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / notebook, EXECUTED / notebook)
            record_path(notebook).write_text(json.dumps(asdict(records[notebook])))
    if problems:
        raise SystemExit("\n".join(problems))
    return records


if __name__ == "__main__":
    execute(book_paths.notebooks())
