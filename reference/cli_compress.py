"""The commands on container files: compress, decompress, and the half of inspect that reads them."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from reference.terminal import ProgressBar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder, name on the hub, 'tutorial', 'minilm', or a .safetensors file.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Argument(help="Container to write, such as out.dcz; must not exist.", show_default=False)
    ],
    sparsity: Annotated[
        float, typer.Option(help="Fraction of each matrix removed by magnitude, 0 or more and below 1.")
    ] = 0.0,
    bits: Annotated[
        int | None, typer.Option(help="Bits of an index into the shared values, 2 to 8; 8 where none is given.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Tensors to keep exactly, repeatable: a pattern such as '*.layers.0.*'. Given once, it replaces "
            "the default: embeddings, output layer, norms.",
            show_default=False,
        ),
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Change no bit: Huffman-code the exponents, keep the rest as it is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Code MODEL's weights into one small file, by Deep Compression or without any loss.

    Each matrix is pruned by magnitude, its remaining weights share 2^bits - 1 values found by k-means, and indices and
    gaps are Huffman-coded. Biases, norms and embeddings keep their bits. Nothing is retrained: what the papers win back by
    retraining is lost here, so be gentle, or retrain in Python with reference.coding.deep_compression.compress. The
    container is for storage: decompress it to use the model.

    With --lossless every bit comes back; weights in bfloat16 shrink by about 30 %. The file is read again and compared
    before the command ends.

    Example: python -m reference compress tutorial small.dcz --bits 5

    Example: python -m reference compress tutorial exact.dcz --lossless

    Example: python -m reference compress lenet.safetensors lenet.dcz --sparsity 0.9 --bits 5
    """

    from reference.coding import container, deep_compression
    from reference.files import check_target

    if not 0 <= sparsity < 1:
        raise ValueError(f"--sparsity is {sparsity}; it may be 0 or more and below 1")
    bits = 8 if bits is None else bits
    if not 2 <= bits <= 8:
        raise ValueError(f"--bits is {bits}; it may be 2 to 8")
    if output.exists():
        raise FileExistsError(f"output {str(output)!r} exists; name a new file or remove it first")
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(output.resolve().parent)!r} to write {output.name!r} to")
    check_target(output)
    shards, files = _sources(model)
    names, dtypes = _headers(shards)
    if not lossless and _quantised(files.get("config.json", b"{}")):
        raise ValueError(
            f"{model!r} is quantised already, and its scales bear no more loss; --lossless codes it exactly"
        )
    for pattern in skip or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} fits no tensor; they are called {names[0]} to {names[-1]}")
    dense = sum(shard.stat().st_size for shard in shards)
    patterns = tuple(skip) if skip is not None else deep_compression.KEPT

    with ProgressBar("coding") as track:
        tensors = _tensors(shards, track)
        shared = (
            tensors if lossless else deep_compression.share_state(tensors, sparsity=sparsity, bits=bits, skip=patterns)
        )
        started = time.perf_counter()
        container.save(output, shared, dtypes=dtypes, files=files)
    encoding = time.perf_counter() - started
    report: dict[str, Any] = {
        "model": model, "output": str(output), "lossless": lossless,
        "sparsity": 0.0 if lossless else sparsity, "bits": None if lossless else bits,
    }  # fmt: skip
    if lossless:
        started = time.perf_counter()
        try:
            with ProgressBar("comparing") as track:
                read = container.read(output)
                found = ((entry.name, value) for entry, _, value in read if not isinstance(value, bytes))
                same = all(
                    first is not None
                    and second is not None
                    and first[0] == second[0]
                    and _identical(first[1], second[1])
                    for first, second in zip_longest(_tensors(shards, track), found)
                )
            if not same:
                raise ValueError(
                    f"what was written does not decode to {model!r}; {str(output)!r} was removed. Please report it"
                )
        except BaseException:  # an interrupt too: what was not compared is not kept
            output.unlink()
            raise
        report |= {"identical": True, "decode_seconds": time.perf_counter() - started}
    parts = container.describe(output)
    size = output.stat().st_size
    carried = sum(len(content) for content in files.values())
    report |= {
        "bytes": {"tensors": dense, "files": carried, "container": size}, "ratio": (dense + carried) / size,
        "encode_seconds": encoding, "parts": _totals(parts),
    }  # fmt: skip
    if as_json:
        print(json.dumps(report, indent=2))
        return
    _show_parts(parts)
    exact = ", compared and identical" if lossless else ""
    print(f"{dense + carried:,} bytes in, {size:,} out: {report['ratio']:.2f} times smaller{exact}")
    print(f"coded at {dense / 1e6 / encoding:,.0f} MB/s; written to {output}")


def decompress(
    file: Annotated[Path, typer.Argument(help="Container that compress wrote.", metavar="FILE", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Folder to create; must be new or empty.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Turn a container into a folder with model.safetensors and the files that the model came with.

    A folder made from a Hugging Face model loads in transformers. Damaged containers are refused with the name of
    the layer that is damaged.

    Example: python -m reference decompress small.dcz small
    """
    from safetensors.torch import save_file

    from reference.coding import container
    from reference.files import atomic_directory, check_target

    _check_file(file)
    check_target(output)
    started = time.perf_counter()
    needs = sum(entry.decoded_bytes for entry in container.entries(file))
    with atomic_directory(output, needs=needs) as folder:
        contents = container.load(file)
        for name in contents.files:
            if Path(name).name != name or name.startswith(".") or "\\" in name or name == "model.safetensors":
                raise ValueError(f"{str(file)!r} carries a file called {name!r}, which is no plain file name")
        tensors = contents.state_dict()
        size = sum(tensor.nbytes for tensor in tensors.values())
        for name, content in contents.files.items():
            (folder / name).write_bytes(content)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    seconds = time.perf_counter() - started
    if as_json:
        report = {"file": str(file), "output": str(output), "tensors": len(tensors), "bytes": size, "seconds": seconds}
        print(json.dumps(report, indent=2))
        return
    print(f"{len(tensors)} tensors, {size:,} bytes, at {size / 1e6 / seconds:,.0f} MB/s; written to {output}")


def inspect_container(file: Path, as_json: bool) -> None:
    """Show where the bytes of a container go, layer by layer."""
    from reference.coding import container
    from reference.coding.weight_sharing import CodebookTensor

    _check_file(file)
    parts = container.describe(file)
    layers: dict[str, dict] = {}
    for entry, _, value in container.read(file):
        row: dict[str, Any] = {"bytes": entry.size, "dense_bytes": entry.decoded_bytes, "parts": parts[entry.name]}
        if isinstance(value, CodebookTensor):
            row |= {
                "bits": value.bits,
                "sparsity": 1 - float(value.mask.double().mean()) if value.codes.numel() else 0.0,
            }
        layers[entry.name] = row
    size = file.stat().st_size
    if as_json:
        print(json.dumps({"file": str(file), "bytes": size, "parts": _totals(parts), "layers": layers}, indent=2))
        return
    table = Table(
        Column("layer", overflow="fold"),
        "how",
        Column("bytes", justify="right"),
        Column("times smaller", justify="right"),
    )
    for name, row in layers.items():
        how = f"{row['bits']} bits, {row['sparsity']:.1%} pruned" if "bits" in row else next(iter(row["parts"]))
        table.add_row(name, how, f"{row['bytes']:,}", f"{row['dense_bytes'] / max(1, row['bytes']):.2f}")
    Console().print(table)
    _show_parts(parts)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}")


def _sources(model: str) -> tuple[list[Path], dict[str, bytes]]:
    """Weight files of a model, and the small files beside them."""
    from reference.models import loading

    if model.endswith(".safetensors"):
        if not Path(model).is_file():
            raise ValueError(f"there is no file {model!r}")
        return [Path(model)], {}
    folder = loading.resolve(model)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"model folder {model!r} holds no .safetensors file")
    files = {
        path.name: path.read_bytes()
        for pattern in loading.PATTERNS
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json"))
    }
    return shards, files


def _quantised(config: bytes) -> bool:
    try:
        return "quantization_config" in json.loads(config)
    except (ValueError, TypeError):  # damaged: carried as it is
        return False


def _headers(shards: list[Path]) -> "tuple[list[str], dict[str, torch.dtype]]":
    """Names in the order of the files, and the dtypes of those that are floats of 16 to 64 bits."""
    import torch
    from safetensors import SafetensorError, safe_open

    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found: dict[str, Any] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.offset_keys():
                    if name in found:
                        raise ValueError(f"tensor {name!r} is in two files, the second {shard.name!r}")
                    found[name] = kinds.get(file.get_slice(name).get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{str(shard)!r} is not a safetensors file: {error}") from error
    return list(found), {name: kind for name, kind in found.items() if kind is not None}


def _tensors(shards: list[Path], track: Callable[[list], Iterable]) -> "Iterator[tuple[str, Tensor]]":
    """One tensor at a time, in the order of :func:`_headers`."""
    from safetensors import safe_open

    names, _ = _headers(shards)
    holder = {name: shard for shard in shards for name in _headers([shard])[0]}
    for name in track(names):
        with safe_open(holder[name], framework="pt") as file:
            yield name, file.get_tensor(name)


def _identical(first: "Tensor", second: object) -> bool:
    import torch

    if not isinstance(second, torch.Tensor) or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*bits)


def _totals(parts: dict[str, dict[str, int]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for row in parts.values():
        totals.update(row)
    return dict(totals)


def _show_parts(parts: dict[str, dict[str, int]]) -> None:
    totals = _totals(parts)
    table = Table("part", Column("bytes", justify="right"), Column("share", justify="right"))
    for name, size in sorted(totals.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size:,}", f"{size / sum(totals.values()):.1%}")
    table.add_row("file", f"{sum(totals.values()):,}", "")
    Console().print(table)
