"""Kill a calibrated run at random moments and start it again, until it ends; the files must be those of a quiet run.

    python benchmarks/kills.py --kills 20

Prints one JSON object and writes it to ``benchmarks/results/kills.json``. Moments are drawn uniformly over the time
that the quiet run took, from the start of each process, so some fall into imports and some into the last rename.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "kills.json"


def command(output: Path) -> list[str]:
    return [
        sys.executable, "-m", "reference", "quantize", "tutorial", "--method", "awq+gptq", "--bits", "3", "--no-evaluate",
        "--sequences", "8", "--window", "128", "--output", str(output),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        quiet, cut = Path(folder) / "quiet", Path(folder) / "cut"
        begin = time.monotonic()
        subprocess.run(command(quiet), check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begin
        kills = rounds = 0
        progress = []
        while kills < arguments.kills:
            process = subprocess.Popen(command(cut), env=environment, stdout=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                progress.append(len(list((Path(folder) / ".cut.unfinished").glob("*.safetensors"))))
                if cut.exists():  # between the last rename and the end of the process
                    shutil.rmtree(Path(folder) / ".cut.unfinished", ignore_errors=True)
                    rounds += 1
                    same(quiet, cut)
                continue
            if process.returncode:
                raise SystemExit(f"a restarted run failed with code {process.returncode}")
            rounds += 1  # it ended before the kill: compare, and begin anew
            same(quiet, cut)
        if not cut.exists():
            subprocess.run(command(cut), check=True, env=environment, stdout=subprocess.DEVNULL)
            rounds += 1
            same(quiet, cut)
    result = {"kills": kills, "rounds_compared": rounds, "finished_steps_at_each_kill": progress, "identical": True}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result | {"command": "python " + " ".join(sys.argv)}, indent=1) + "\n")
    print(json.dumps(result))


def same(quiet: Path, cut: Path) -> None:
    """Compare byte by byte and remove the second folder."""
    names = sorted(path.name for path in quiet.iterdir())
    if names != sorted(path.name for path in cut.iterdir()):
        raise SystemExit("the folders hold other files")
    for name in names:
        if (quiet / name).read_bytes() != (cut / name).read_bytes():
            raise SystemExit(f"{name} differs")
    for path in cut.iterdir():
        path.unlink()
    cut.rmdir()


if __name__ == "__main__":
    main()
