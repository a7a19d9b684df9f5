"""The container: everything comes back, every byte is counted, every damage is named."""

import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.coding import container, records
from reference.coding.weight_sharing import CodebookTensor, share

DTYPES = list(records.DTYPES)


def shared(shape: tuple[int, ...], keep: float, bits: int, seed: int = 0) -> CodebookTensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return share(weight, torch.rand(shape, generator=generator) < keep, bits)


def same(first: CodebookTensor | torch.Tensor, second: CodebookTensor | torch.Tensor) -> bool:
    if isinstance(first, CodebookTensor):
        assert isinstance(second, CodebookTensor)
        return torch.equal(first.codes, second.codes) and torch.equal(first.codebook, second.codebook)
    assert isinstance(second, torch.Tensor)
    bits = [value.contiguous().reshape(-1).view(torch.uint8) for value in (first, second)]
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)


@pytest.fixture
def layers() -> dict[str, CodebookTensor | torch.Tensor]:
    torch.manual_seed(0)
    return {
        "fc1.weight": shared((40, 60), 0.08, 5),
        "fc1.bias": torch.randn(40),
        "fc2.weight": shared((10, 40), 1.0, 3),
        "steps": torch.tensor(7),
    }


@pytest.fixture
def file(tmp_path: Path, layers: dict) -> Path:
    path = tmp_path / "model.dcz"
    container.save(path, layers, files={"config.json": b'{"a": 1}'})
    return path


def test_everything_comes_back(file: Path, layers: dict) -> None:
    contents = container.load(file)
    assert list(contents.layers) == list(layers)
    assert all(same(layers[name], contents.layers[name]) for name in layers)
    assert contents.files == {"config.json": b'{"a": 1}'}
    dense = contents.state_dict()
    assert torch.equal(dense["fc1.weight"], layers["fc1.weight"].to_dense())


def test_every_byte_has_a_purpose(file: Path, layers: dict) -> None:
    parts = container.describe(file)
    assert sum(sum(row.values()) for row in parts.values()) == file.stat().st_size
    assert set(parts) == {*layers, "config.json", ""}
    assert parts["fc1.weight"]["codebook"] == 31 * 4
    assert all(size >= 0 for row in parts.values() for size in row.values())


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 30), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(2, 8)),
        max_size=4,
    ),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_shared_weights_come_back(tmp_path_factory: pytest.TempPathFactory, settings_: list, seed: int) -> None:
    path = tmp_path_factory.mktemp("any") / "x.dcz"
    made = {
        str(i): shared((rows, columns), keep, bits, seed) for i, (rows, columns, keep, bits) in enumerate(settings_)
    }
    container.save(path, made)
    found = container.load(path).layers
    assert all(same(made[name], found[name]) for name in made)
    assert sum(sum(row.values()) for row in container.describe(path).values()) == path.stat().st_size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (50, 40)], ids=str)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape) > 0 if dtype == torch.bool else (torch.randn(shape) * 20).to(dtype)
    if dtype.is_floating_point and tensor.numel() > 3:
        tensor.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("-inf")], dtype=dtype)
    container.save(tmp_path / "x.dcz", {"t": tensor})
    assert same(tensor, container.load(tmp_path / "x.dcz").layers["t"])


def test_codebooks_are_stored_in_their_dtype(tmp_path: Path) -> None:
    tensor = shared((30, 30), 0.2, 4)
    rounded = CodebookTensor(tensor.codebook.bfloat16().float(), tensor.codes, 4)
    container.save(tmp_path / "x.dcz", {"w": rounded}, dtypes={"w": torch.bfloat16})
    assert container.describe(tmp_path / "x.dcz")["w"]["codebook"] == 15 * 2
    contents = container.load(tmp_path / "x.dcz")
    assert contents.state_dict()["w"].dtype == torch.bfloat16
    assert same(rounded, contents.layers["w"])
    with pytest.raises(ValueError, match="that torch.bfloat16 cannot"):
        container.save(tmp_path / "x.dcz", {"w": tensor}, dtypes={"w": torch.bfloat16})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_codebook_of_a_dtype_that_cannot_be_read_back_is_not_written(tmp_path: Path, dtype: torch.dtype) -> None:
    """Its values are whole numbers, which an integer type would hold."""
    tensor = CodebookTensor(torch.tensor([0.0, 1, 1, 1]), torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2)
    with pytest.raises(TypeError, match=rf"w: dtype of the codebook is {dtype}; it may be torch.float32, "):
        container.save(tmp_path / "x.dcz", {"w": tensor}, dtypes={"w": dtype})
    assert not list(tmp_path.iterdir())
    container.save(tmp_path / "x.dcz", {"w": tensor}, dtypes={"w": torch.float64})
    assert same(tensor, container.load(tmp_path / "x.dcz").layers["w"])


def test_sparse_and_dense_layouts_are_each_chosen_where_they_are_shorter() -> None:
    sparse = records.encode_shared(shared((200, 200), 0.03, 4), torch.float32)
    dense = records.encode_shared(shared((200, 200), 0.9, 4), torch.float32)
    assert records.purposes(sparse.kind, memoryview(sparse.body), torch.float32, (200, 200))["gaps"] > 0
    assert records.purposes(dense.kind, memoryview(dense.body), torch.float32, (200, 200))["gaps"] == 0


def test_fillers_take_their_share_of_both_payloads() -> None:
    """Kept weights 1000 apart, whose gaps no field of 8 bits bridges: fillers are counted one by one."""
    codes = torch.zeros(1, 40_000, dtype=torch.uint8)
    codes[0, 999::1000] = torch.arange(40, dtype=torch.uint8) % 3 + 1
    tensor = CodebookTensor(torch.tensor([0.0, 1.0, -1.0, 2.0]), codes, 2)
    record = records.encode_shared(tensor, torch.float32)
    parts = records.purposes(record.kind, memoryview(record.body), torch.float32, (1, 40_000))
    width = record.body[1]
    fillers = 40 * (999 // 2**width)
    assert fillers >= 3 * 40
    share = fillers / (fillers + 40)
    assert parts["fillers"] == pytest.approx(share * (parts["codes"] + parts["gaps"] + parts["fillers"]), abs=2)
    assert sum(parts.values()) == len(record.body)


def test_every_flipped_byte_is_refused_by_name(file: Path) -> None:
    data = file.read_bytes()
    listed = container.entries(file)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        owner = next((entry.name for entry in listed if entry.start <= place < entry.start + entry.size), None)
        with pytest.raises(ValueError, match=repr(owner) if owner else "container|version|table of contents"):
            container.load(file)


def test_every_cut_is_refused_by_name(file: Path) -> None:
    data = file.read_bytes()
    listed = container.entries(file)
    for length in range(len(data)):
        file.write_bytes(data[:length])
        owner = next((entry.name for entry in listed if length < entry.start + entry.size), None)
        with pytest.raises(ValueError, match="not a container|cut off"):
            container.load(file)
        if length >= listed[0].start:
            with pytest.raises(ValueError, match=f"record {owner!r}"):
                container.load(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="1 bytes after its last record"):
        container.load(file)


def hostile(shape: tuple[int, ...], body: bytes, kind: int = records.SHARED, dtype: int = 0) -> bytes:
    """A file whose checksums all fit and whose contents lie."""
    entry = struct.pack("<HBBBQI", 1, kind, dtype, len(shape), len(body), zlib.crc32(body))
    listing = entry + struct.pack(f"<{len(shape)}Q", *shape) + b"w"
    head = struct.pack("<HI", 1, len(listing))
    return container.MAGIC + head + struct.pack("<I", zlib.crc32(head + listing)) + listing + body


def fields(bits: int, width: int, coded: int, gaps: int, entries: int, size: int) -> bytes:
    return struct.pack("<BBBBQQ", bits, width, coded, gaps, entries, size)


@pytest.mark.parametrize(
    ("shape", "body", "message"),
    [
        ((2**30, 2**30), b"", "declares 4,611,686"),
        ((4,), b"", "fewer than the 20"),
        ((4,), fields(9, 4, 0, 0, 1, 1), "codes of 9 bits"),
        ((4,), fields(2, 9, 0, 0, 1, 1), "gaps of 9 bits"),
        ((4,), fields(2, 4, 0, 0, 5, 1) + bytes(20), "5 entries"),
        ((4,), fields(2, 0, 0, 0, 3, 1) + bytes(20), "3 entries"),
        ((4,), fields(2, 0, 0, 1, 4, 1) + bytes(13), "gaps of 0 bits"),
        ((4,), fields(2, 4, 0, 0, 1, 2**60) + bytes(20), "1 entries in 1152921504606846976 bytes"),
        ((4,), fields(2, 4, 0, 0, 1, 1) + bytes(12) + b"\x01\x09", "past the last of 4|lead to position"),
        ((4,), fields(2, 4, 1, 0, 1, 1) + bytes(12) + b"\x01\x09", "cut off"),
        ((4,), fields(2, 0, 0, 0, 4, 1) + bytes(12) + b"\x01\x09", "1 bytes are left over"),
        ((4,), fields(2, 4, 0, 0, 2, 1) + bytes(12) + b"\x05\x00\x00", "do not hold 2 codes"),
    ],
)
def test_lies_are_refused(tmp_path: Path, shape: tuple[int, ...], body: bytes, message: str) -> None:
    path = tmp_path / "x.dcz"
    path.write_bytes(hostile(shape, body))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            container.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_declared_sizes_are_bounded_before_memory_is_taken(tmp_path: Path) -> None:
    """An all-zero layer of four billion weights is a legal file of a few bytes; the reader decides."""
    path = tmp_path / "x.dcz"
    path.write_bytes(hostile((2**20,), fields(2, 4, 0, 0, 0, 0) + bytes(12)))
    assert not container.load(path).state_dict()["w"].any()
    with pytest.raises(ValueError, match="declares 4,194,304 bytes of tensors; max_bytes is 1,000"):
        container.load(path, max_bytes=1000)


def test_repaired_checksums_do_not_get_a_lie_through(tmp_path: Path) -> None:
    """Bodies altered, cut and lengthened, all checksums made to fit: a clear error with the name, or a counted file."""
    rng, path = random.Random(0), tmp_path / "x.dcz"
    made = {
        "sparse": shared((40, 60), 0.08, 5),
        "dense": shared((40, 60), 1.0, 3),
        "packed": shared((3, 5), 0.3, 2),
        "coded": torch.randn(900).bfloat16() * 0.01,
        "raw": torch.rand(30) > 0.5,
    }
    container.save(path, made)
    bodies = [(entry, bytes(body)) for entry, body, _ in container.read(path)]
    sizes, outcomes = [0, 1, 5, 60, 2400, 2**20, 2**31, 2**63, 2**64 - 1], [0, 0]
    for _ in range(600):
        entry, original = rng.choice(bodies)
        body, shape = bytearray(original), entry.shape
        for _ in range(rng.randrange(4)):
            body[rng.randrange(min(len(body), rng.choice([20, 10**6])))] = rng.choice([0, 1, 255, rng.randrange(256)])
        if rng.random() < 0.2:
            body = body[: rng.randrange(len(body))] + bytes(rng.randrange(4))
        if rng.random() < 0.2:
            shape = tuple(rng.choice(sizes) for _ in range(rng.choice([0, 1, 2, 70])))
        if entry.kind == records.LOSSLESS:
            body[4:8] = struct.pack("<I", zlib.crc32(body[8:]))
        path.write_bytes(hostile(shape, bytes(body), entry.kind, records.DTYPES.index(entry.dtype)))
        try:
            container.load(path, max_bytes=2**24)
        except ValueError as error:
            assert "layer 'w'" in str(error) or "max_bytes" in str(error)  # noqa: PT017
            outcomes[0] += 1
        else:
            parts = container.describe(path)
            assert sum(sum(row.values()) for row in parts.values()) == path.stat().st_size
            outcomes[1] += 1
    assert min(outcomes) > 50


@pytest.mark.parametrize(
    ("name_bytes", "dimensions"), [(2, 1), (2**16 - 1, 1), (1, 2)], ids=["name", "long name", "shape"]
)
def test_a_table_of_contents_that_ends_within_an_entry_is_refused(
    tmp_path: Path, name_bytes: int, dimensions: int
) -> None:
    listing = struct.pack("<HBBBQI", name_bytes, records.RAW, 8, dimensions, 1, zlib.crc32(b"x"))
    listing += struct.pack("<Q", 1) + b"w"
    head = struct.pack("<HI", 1, len(listing))
    path = tmp_path / "x.dcz"
    path.write_bytes(container.MAGIC + head + struct.pack("<I", zlib.crc32(head + listing)) + listing + b"x")
    with pytest.raises(ValueError, match="contradicts itself"):
        container.entries(path)


@pytest.mark.parametrize(
    ("dtype", "body", "message"),
    [
        (torch.bool, b"\x01\x02", "a truth value is neither 0 nor 1"),
        (torch.uint8, b"\x01", r"1 bytes are not those of torch.uint8 \(2,\)"),
        (torch.int16, b"\x01" * 5, r"5 bytes are not those of torch.int16 \(2,\)"),
    ],
)
def test_raw_bytes_of_no_tensor_are_refused(tmp_path: Path, dtype: torch.dtype, body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records.decode_tensor(records.RAW, memoryview(body), dtype, (2,))
    path = tmp_path / "x.dcz"
    path.write_bytes(hostile((2,), body, records.RAW, records.DTYPES.index(dtype)))
    with pytest.raises(ValueError, match=f"layer 'w' is damaged: {message}"):
        container.load(path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    entry = struct.pack("<HBBBQI", 1, records.RAW, 8, 1, 1, zlib.crc32(b"x")) + struct.pack("<Q", 1) + b"w"
    head = struct.pack("<HI", 1, 2 * len(entry))
    listing = 2 * entry
    path = tmp_path / "x.dcz"
    path.write_bytes(container.MAGIC + head + struct.pack("<I", zlib.crc32(head + listing)) + listing + b"xx")
    with pytest.raises(ValueError, match="contradicts itself"):
        container.load(path)


def test_another_version_is_named(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8] = 2
    file.write_bytes(data)
    with pytest.raises(ValueError, match="version 2; this program reads version 1"):
        container.load(file)


def test_a_failed_write_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError, match=r"c: tensor is torch.complex64"):
        container.save(file, {"w": torch.zeros(3), "c": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="twice"):
        container.save(file, [("w", torch.zeros(3)), ("w", torch.zeros(3))])
    for name in ("", "w" * 2**16, "ü" * 2**15):
        with pytest.raises(ValueError, match="the name is empty or too long"):
            container.save(file, {name: torch.zeros(3)})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        container.save(file.parent / "no" / "x.dcz", {})
