r"""The container file ``.dcz``: a table of contents and one record a tensor, each with its checksum.

Numbers are little-endian::

    byte  0  8 bytes   "\x89DCZ\r\n\x1a\n": a transfer that mangles line ends shows at once
          8  uint16    version, 1
         10  uint32    bytes of the table of contents
         14  uint32    CRC-32 of bytes 8 to 13 and of the table
         18  table     one entry after the other
             records   in the table's order, with nothing between or after them

One entry of the table::

          0  uint16    bytes of the name
          2  uint8     kind: 0 file, 1 shared, 2 raw, 3 lossless
          3  uint8     dtype, an index into `records.DTYPES`; 0 for files
          4  uint8     dimensions; for files 1
          5  uint64    bytes of the record
         13  uint32    CRC-32 of the record
         17  uint64    each dimension; for files their size when unpacked
             name      UTF-8

Files (a model's configuration, its tokenizer) are compressed by zlib.
"""

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reference.coding import records
from reference.coding.weight_sharing import CodebookTensor
from reference.files import tell_full

MAGIC = b"\x89DCZ\r\n\x1a\n"
VERSION = 1
#: Decoded bytes that :func:`load` takes memory for unless told otherwise.
LARGEST = 2**36
_HEAD = struct.Struct("<HII")
_ENTRY = struct.Struct("<HBBBQI")
_FILE = 0
_KINDS = ("file", "shared", "raw", "lossless")

Layers = Mapping[str, CodebookTensor | Tensor] | Iterable[tuple[str, CodebookTensor | Tensor]]


class Entry(NamedTuple):
    """One line of the table of contents: ``name``; ``kind``, 0 file, 1 shared, 2 raw, 3 lossless; ``dtype`` and
    ``shape`` of what it holds; first byte (``start``) and bytes (``size``) of its record, and its CRC-32.

    Example:
        >>> entry = Entry("fc.weight", 2, torch.float16, (3, 4), start=70, size=24, checksum=0)
        >>> entry.decoded_bytes
        24

    Chapter: pruning/deep_compression
    """

    name: str
    kind: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int
    checksum: int

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the dense tensor, or of the unpacked file."""
        count = 1
        for size in self.shape:
            count *= size
        return count * (1 if self.kind == _FILE else self.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class Contents:
    """What a container holds.

    Attributes:
        layers: name → shared weight, or tensor.
        dtypes: name → dtype of the dense tensor.
        files: name → bytes.

    Example:
        >>> codes = torch.tensor([0, 3, 1], dtype=torch.uint8)
        >>> shared = CodebookTensor(torch.tensor([0.0, 0.5, 1.0, -1.0]), codes, bits=2)
        >>> Contents({"w": shared}, {"w": torch.bfloat16}).state_dict()
        {'w': tensor([ 0.0000, -1.0000,  0.5000], dtype=torch.bfloat16)}

    Chapter: pruning/deep_compression
    """

    layers: dict[str, CodebookTensor | Tensor]
    dtypes: dict[str, torch.dtype]
    files: dict[str, bytes] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, dense."""
        return {
            name: value.to_dense().to(self.dtypes[name]) if isinstance(value, CodebookTensor) else value
            for name, value in self.layers.items()
        }


def save(
    path: str | os.PathLike,
    layers: Layers,
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a container, whole or not at all.

    Args:
        path: file to write; an older one is replaced.
        layers: names and tensors, a mapping or pairs; one pair at a time is held in memory.
        dtypes: dtype of the codebook of shared weights, by name; float32 where none is named.
        files: further files to carry.

    Raises:
        ValueError: a name occurs twice or is too long, or a codebook does not fit its dtype.
        TypeError: a tensor is of a dtype that the format does not know, or a codebook is to be of no floating-point one.

    Source: the pipeline of Han et al. 2016; the format is our own.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.dcz", {"bias": torch.tensor([1.0, -2.0])}, files={"config.json": b"{}"})
        ...     Path(folder, "model.dcz").read_bytes()[1:4], load(f"{folder}/model.dcz").files
        (b'DCZ', {'config.json': b'{}'})

    Chapter: pruning/deep_compression
    """
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.resolve().parent)!r} to write {path.name!r} to")
    table: list[bytes] = []
    names: set[str] = set()
    with _naming_full(path), tempfile.TemporaryFile(dir=path.resolve().parent) as bodies:

        def add(name: str, kind: int, dtype: torch.dtype, shape: tuple[int, ...], body: bytes) -> None:
            encoded = name.encode()
            if name in names or not 0 < len(encoded) < 2**16:
                raise ValueError(f"layers names {name[:80]!r} twice, or the name is empty or too long")
            names.add(name)
            number = records.DTYPES.index(dtype)
            fields = _ENTRY.pack(len(encoded), kind, number, len(shape), len(body), zlib.crc32(body))
            table.append(fields + struct.pack(f"<{len(shape)}Q", *shape) + encoded)
            bodies.write(body)

        for name, value in layers.items() if isinstance(layers, Mapping) else layers:
            try:
                if isinstance(value, CodebookTensor):
                    dtype, shape = (dtypes or {}).get(name, torch.float32), tuple(value.codes.shape)
                    record = records.encode_shared(value, dtype)
                else:
                    dtype, shape = value.dtype, tuple(value.shape)
                    record = records.encode_tensor(value)
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from None
            add(name, record.kind, dtype, shape, record.body)
        for name, content in (files or {}).items():
            body = zlib.compress(content, 9)
            add(name, _FILE, records.DTYPES[0], (len(content),), body)
        listing = b"".join(table)
        head = struct.pack("<HI", VERSION, len(listing))
        head += struct.pack("<I", zlib.crc32(head + listing))
        bodies.seek(0)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(MAGIC + head + listing)
                shutil.copyfileobj(bodies, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _naming_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tell_full(error, str(path))
        raise


def entries(path: str | os.PathLike) -> list[Entry]:
    """The table of contents, checked against the length of the file; no record is read.

    Raises:
        ValueError: not a container, another version, a damaged table, or a record that is cut off
            (the message names it).

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.dcz", {"bias": torch.tensor([1.0, -2.0])})
        ...     [(entry.name, entry.shape, entry.size) for entry in entries(f"{folder}/model.dcz")]
        [('bias', (2,), 8)]

    Chapter: pruning/deep_compression
    """
    path = Path(path)
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + _HEAD.size)
        if not start.startswith(MAGIC):
            raise ValueError(f"{str(path)!r} is not a container: it does not begin with {MAGIC!r}")
        if len(start) < len(MAGIC) + _HEAD.size:
            raise ValueError(f"{str(path)!r} is cut off in its header")
        version, size, checksum = _HEAD.unpack_from(start, len(MAGIC))
        if version != VERSION:
            raise ValueError(f"{str(path)!r} is of version {version}; this program reads version {VERSION}")
        if size > length - len(start):
            raise ValueError(f"{str(path)!r} is cut off in its table of contents")
        listing = file.read(size)
    if zlib.crc32(start[len(MAGIC) : len(MAGIC) + 6] + listing) != checksum:
        raise ValueError(f"{str(path)!r} has a damaged table of contents: its checksum does not fit")
    found: dict[str, Entry] = {}
    try:
        place, body = 0, len(start) + size
        while place < len(listing):
            name_bytes, kind, dtype, dimensions, record_bytes, record_sum = _ENTRY.unpack_from(listing, place)
            place += _ENTRY.size
            shape = struct.unpack_from(f"<{dimensions}Q", listing, place)
            place += 8 * dimensions
            name = listing[place : place + name_bytes].decode()
            place += name_bytes
            if place > len(listing) or kind >= len(_KINDS) or (kind == _FILE and dimensions != 1) or name in found:
                raise ValueError(name)
            found[name] = Entry(name, kind, records.DTYPES[dtype], shape, body, record_bytes, record_sum)
            body += record_bytes
    except (struct.error, IndexError, ValueError) as error:  # a checksum that fits proves no good intentions
        raise ValueError(f"{str(path)!r} has a table of contents that contradicts itself") from error
    for entry in found.values():
        if entry.start + entry.size > length:
            raise ValueError(f"{str(path)!r} is cut off in {_KINDS[entry.kind]} record {entry.name!r}")
    if body != length:
        raise ValueError(f"{str(path)!r} has {length - body} bytes after its last record")
    return list(found.values())


def read(
    path: str | os.PathLike, *, max_bytes: int = LARGEST
) -> Iterator[tuple[Entry, memoryview, CodebookTensor | Tensor | bytes]]:
    """The records of a container that need not be trusted, one after the other.

    Args:
        path: the file.
        max_bytes: refuse a file whose tensors take more when decoded, before memory is taken for them.

    Yields:
        The entry, its bytes as stored, and what they hold: a shared weight, a tensor, or a file's bytes.

    Raises:
        ValueError: not a container, damaged (the message names the layer), or too large.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.dcz", {"bias": torch.tensor([1.0, -2.0])})
        ...     [(entry.name, body.hex(), value) for entry, body, value in read(f"{folder}/model.dcz")]
        [('bias', '0000803f000000c0', tensor([ 1., -2.]))]

    Chapter: pruning/deep_compression
    """
    listed = entries(path)
    declared = sum(entry.decoded_bytes for entry in listed)
    if declared > max_bytes:
        raise ValueError(f"{str(path)!r} declares {declared:,} bytes of tensors; max_bytes is {max_bytes:,}")
    with Path(path).open("rb") as file:
        for entry in listed:
            file.seek(entry.start)
            body = memoryview(file.read(entry.size))
            try:
                value = _decode(entry, body)
            except (ValueError, TypeError, OverflowError, RuntimeError) as error:
                raise ValueError(f"{str(path)!r}: layer {entry.name!r} is damaged: {error}") from error
            yield entry, body, value


def load(path: str | os.PathLike, *, max_bytes: int = LARGEST) -> Contents:
    """Everything that a container holds; arguments and errors as :func:`read`.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.dcz", {"bias": torch.tensor([1.0, -2.0])})
        ...     load(f"{folder}/model.dcz").layers
        {'bias': tensor([ 1., -2.])}

    Chapter: pruning/deep_compression
    """
    contents = Contents({}, {}, {})
    for entry, _, value in read(path, max_bytes=max_bytes):
        if isinstance(value, bytes):
            contents.files[entry.name] = value
        else:
            contents.layers[entry.name], contents.dtypes[entry.name] = value, entry.dtype
    return contents


def describe(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    """Where the bytes of a container go; the numbers add up to the size of the file.

    Returns:
        Name of the layer → bytes by purpose (see :func:`reference.coding.records.purposes`; files have
        ``files``). The empty name stands for the header and the table of contents.

    Raises:
        ValueError: as :func:`read`.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.dcz", {"bias": torch.tensor([1.0, -2.0])})
        ...     describe(f"{folder}/model.dcz"), Path(folder, "model.dcz").stat().st_size
        ({'bias': {'raw': 8}, '': {'header': 47}}, 55)

    Chapter: pruning/deep_compression
    """
    result: dict[str, dict[str, int]] = {}
    for entry, body, value in read(path):
        file = isinstance(value, bytes)
        result[entry.name] = (
            {"files": entry.size} if file else records.purposes(entry.kind, body, entry.dtype, entry.shape)
        )
    result[""] = {"header": Path(path).stat().st_size - sum(sum(parts.values()) for parts in result.values())}
    return result


def _decode(entry: Entry, body: memoryview) -> CodebookTensor | Tensor | bytes:
    if zlib.crc32(body) != entry.checksum:
        raise ValueError("its checksum does not fit")
    if entry.kind == _FILE:
        return _unzip(body, entry.shape[0])
    if entry.kind == records.SHARED:
        return records.decode_shared(body, entry.dtype, entry.shape)
    return records.decode_tensor(entry.kind, body, entry.dtype, entry.shape)


def _unzip(body: memoryview, size: int) -> bytes:
    try:
        decoder = zlib.decompressobj()
        content = decoder.decompress(body, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(content) != size or not decoder.eof or decoder.unused_data:
        raise ValueError(f"it does not unpack to the {size} bytes that it declares")
    return content
