"""Time the Huffman codec beside zlib, dahuffman and constriction, on one core.

    python -m pip install dahuffman==0.4.2 constriction==0.5.0
    python benchmarks/huffman.py

Two streams of 8-bit symbols: the exponents of Gaussian bfloat16 weights, and gaps between kept weights with 5-bit
indices (geometric, the filler included). Each coder encodes and decodes in turns, the best time counts: another job
on the machine slows all alike, and only ratios within one run are comparable. `dahuffman` and constriction's Huffman
code work symbol by symbol from Python and get the first part of the stream only. constriction's ANS coder is no
Huffman coder: it shows what the entropy bound costs. Its int32 input and its model are made before the clock starts;
our encoder counts its symbols itself. `ours, group 1` is the plain Huffman code, `ours` what `encode` chooses.
"""

import argparse
import json
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import constriction
import dahuffman
import numpy as np
import torch

from reference.coding import huffman, lossless
from reference.models import tutorial

RESULT = Path(__file__).parent / "results" / "huffman.json"

Coder = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], int]]


def bf16_exponents(n: int) -> np.ndarray:
    """Bits 7 to 14 of bfloat16 weights of standard deviation 0.02."""
    weights = np.random.default_rng(0).standard_normal(n, np.float32)
    weights *= np.float32(0.02)
    return (weights.view(np.uint32) >> 23 & 0xFF).astype(np.uint8)


def gaps(n: int) -> np.ndarray:
    """Gaps less one at density 8 %, 5 bits: the last value is the filler."""
    return (np.random.default_rng(1).geometric(0.08, n) - 1).clip(0, 31).astype(np.uint8)


def coders(symbols: np.ndarray) -> dict[str, Coder]:
    """Name → encode, decode, bytes of what encode returns."""
    blob = symbols.tobytes()
    wide = symbols.astype(np.int32)
    p = np.bincount(symbols, minlength=256).astype(np.float64)
    model = constriction.stream.model.Categorical(p / p.sum(), perfect=False)

    def ans_encode() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(wide, model)
        return coder.get_compressed()

    return {
        "ours": (lambda: huffman.encode(symbols), huffman.decode, len),
        "ours, group 1": (lambda: huffman.encode(symbols, group=1), huffman.decode, len),
        "zlib, level 1": (lambda: zlib.compress(blob, 1), zlib.decompress, len),
        "zlib, level 6": (lambda: zlib.compress(blob, 6), zlib.decompress, len),
        "zlib, Huffman only": (lambda: huffman_only(blob), lambda data: zlib.decompress(data, -15), len),
        "constriction, ANS": (
            ans_encode,
            lambda data: constriction.stream.stack.AnsCoder(data).decode(model, len(wide)),
            lambda data: data.nbytes,
        ),
    }


def slow_coders(symbols: np.ndarray) -> dict[str, Coder]:
    """Those that cost Python a step a symbol."""
    codec = dahuffman.HuffmanCodec.from_data(symbols.tolist())
    values = symbols.tolist()
    p = np.bincount(symbols).astype(np.float32)
    writing = constriction.symbol.huffman.EncoderHuffmanTree(p)
    reading = constriction.symbol.huffman.DecoderHuffmanTree(p)

    def tree_encode() -> np.ndarray:
        queue = constriction.symbol.QueueEncoder()
        for value in values:
            queue.encode_symbol(value, writing)
        return queue.get_compressed()[0]

    def tree_decode(words: np.ndarray) -> list[int]:
        queue = constriction.symbol.QueueDecoder(words)
        return [queue.decode_symbol(reading) for _ in values]

    return {
        "dahuffman": (lambda: codec.encode(values), codec.decode, len),
        "constriction, Huffman": (tree_encode, tree_decode, lambda words: words.nbytes),
    }


def huffman_only(blob: bytes) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(blob) + coder.flush()


def measure(name: str, symbols: np.ndarray, made: dict[str, Coder], rounds: int, bound: float) -> list[dict]:
    """Rows of one stream: best times over ``rounds``, coders in turns."""
    best = {coder: [float("inf"), float("inf")] for coder in made}
    sizes = {}
    for _ in range(rounds):
        for coder, (encode, decode, size) in made.items():
            start = time.perf_counter()
            data = encode()
            middle = time.perf_counter()
            back = decode(data)
            end = time.perf_counter()
            best[coder] = [min(best[coder][0], middle - start), min(best[coder][1], end - middle)]
            sizes[coder] = size(data)
            back = np.frombuffer(back, np.uint8) if isinstance(back, bytes) else np.asarray(back)
            if not (back == symbols).all():
                raise SystemExit(f"{coder} did not give {name} back")
    n = len(symbols)
    return [
        {
            "stream": name,
            "coder": coder,
            "symbols": n,
            "encode_mb_per_s": round(n / 1e6 / best[coder][0], 2),
            "decode_mb_per_s": round(n / 1e6 / best[coder][1], 2),
            "bits_per_symbol": round(8 * sizes[coder] / n, 5),
            "over_entropy": round(8 * sizes[coder] / n / bound - 1, 5),
        }
        for coder in made
    ]


def lossless_tensors(rounds: int) -> dict:
    """The shipped model's weights in bfloat16, one blob a tensor: bytes and MB/s of bfloat16 bytes."""
    tensors = [tensor.detach() for tensor in tutorial.load(dtype=torch.bfloat16).parameters()]
    before = sum(tensor.nbytes for tensor in tensors)
    encoding = decoding = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        blobs = [lossless.encode(tensor) for tensor in tensors]
        middle = time.perf_counter()
        back = [lossless.decode(b, t.dtype, t.shape) for b, t in zip(blobs, tensors, strict=True)]
        encoding, decoding = min(encoding, middle - start), min(decoding, time.perf_counter() - middle)
        if not all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(back, tensors, strict=True)):
            raise SystemExit("the shipped model did not come back")
    after = sum(map(len, blobs))
    return {
        "bytes_before": before,
        "bytes_after": after,
        "ratio": round(after / before, 5),
        "encode_mb_per_s": round(before / 1e6 / encoding, 1),
        "decode_mb_per_s": round(before / 1e6 / decoding, 1),
    }


def cpu() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, 1 thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=64_000_000, help="length of each stream")
    parser.add_argument("--slow-symbols", type=int, default=500_000, help="length for the coders in Python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, entropies = [], {}
    for make in (bf16_exponents, gaps):
        symbols = make(arguments.symbols)
        freq = np.bincount(symbols)
        entropies[make.__name__] = round(huffman.entropy(freq), 5)
        bound = huffman.entropy(freq)
        for group in (None, 1):  # compile before the clock starts
            huffman.decode(huffman.encode(symbols[:100_000], group=group))
        rows += measure(make.__name__, symbols, coders(symbols), arguments.rounds, bound)
        part = symbols[: arguments.slow_symbols]
        rows += measure(make.__name__, part, slow_coders(part), 1, huffman.entropy(np.bincount(part)))
    for row in rows:
        ours = next(other for other in rows if (other["stream"], other["coder"]) == (row["stream"], "ours"))
        for way in ("encode", "decode"):
            row[f"ours_{way}s_times_faster"] = round(ours[f"{way}_mb_per_s"] / row[f"{way}_mb_per_s"], 2)
    shipped = lossless_tensors(arguments.rounds)
    record = {
        "name": "huffman",
        "what": "Encoding and decoding 8-bit symbols on one core, MB/s of symbols (10^6 bytes); best of interleaved runs",
        "entropy_bits_per_symbol": entropies,
        "values": rows,
        "shipped_model_lossless": shipped,
        "command": " ".join(["python", "benchmarks/huffman.py", *sys.argv[1:]]),
        "device": cpu(),
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            **{name: version(name) for name in ("numpy", "numba", "dahuffman", "constriction")},
        },
        "load": [round(load, 2) for load in os.getloadavg()],
        "seed": 0,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['stream']:15} {row['coder']:22} encode {row['encode_mb_per_s']:8} decode {row['decode_mb_per_s']:8} MB/s"
            f"  {row['bits_per_symbol']:.4f} bits, {100 * row['over_entropy']:.3f} % over the entropy"
        )
    print(shipped)


if __name__ == "__main__":
    main()
