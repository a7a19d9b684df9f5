#!/usr/bin/env bash
# Everything that a GPU is wanted for, in one command; what is worth most comes first, and each step writes as it goes.
#
#     bash benchmarks/on_a_gpu.sh 560          seconds in all; results in $OUT, or in gpu_out
#     DRY=1 bash benchmarks/on_a_gpu.sh        without a GPU: the same calls at small sizes, interpreted, no times
#
# Order: settings compiled and compared with float64; contests between them; every kernel compared with float64; the
# record with the winners, first the few sizes of every kernel, then all rows (1 to 512) on layers of 7B, 13B and 70B
# models; the chapter's five steps; the tests on a device. Steps after a failed one still run.
set -u
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-560}
out=${OUT:-gpu_out}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=.

part() { echo $((seconds * $1 / 100)); }

step() { # name, then the command: its end is shown, all of it is kept
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@" >"$out/$name.log" 2>&1
    echo "exit code $?, $((SECONDS - began)) s"
    tail -n 4 "$out/$name.log" | cut -c1-400
}

if [ -n "${DRY:-}" ]; then
    export TRITON_INTERPRET=1
    step sweep "$python" benchmarks/kernels.py --dry-run --sweep --only w4a16 --output "$out/sweep.jsonl"
    step check "$python" benchmarks/kernels.py --dry-run --output "$out/check.jsonl"
    step steps "$python" benchmarks/kernels.py --dry-run --steps --output "$out/steps.jsonl"
    exit 0
fi
export TRITON_INTERPRET=0
step tune_check "$python" benchmarks/tune_kernels.py --check --output "$out/tune.jsonl" --time-limit "$(part 11)"
step tune "$python" benchmarks/tune_kernels.py --output "$out/tune.jsonl" --tables "$out/tables.json" --time-limit "$(part 25)"
tables=()
[ -s "$out/tables.json" ] && tables=(--tables "$out/tables.json")
step check "$python" benchmarks/kernels.py --check "${tables[@]}" --output "$out/check.jsonl" --time-limit "$(part 10)"
step record "$python" benchmarks/kernels.py --time-only --failed "$out/check.jsonl" "${tables[@]}" \
    --output "$out/record.jsonl" --record "$out/kernels.json" --time-limit "$(part 38)"
step steps "$python" benchmarks/kernels.py --steps --time-only "${tables[@]}" \
    --output "$out/steps.jsonl" --record "$out/kernels_steps.json" --time-limit "$(part 4)"
step device timeout "$(part 10)" "$python" -m pytest tests/kernels/test_on_device.py -q -p no:cacheprovider
