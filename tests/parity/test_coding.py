"""Weight sharing and relative indices against recorded outputs of scipy, exact programs and autograd (README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.codebook_layers import SharedWeight
from reference.coding import sparse_index
from reference.coding.weight_sharing import CodebookTensor, initial_centroids, kmeans, optimal_kmeans, squared_error

HERE = Path(__file__).parent
with np.load(HERE / "kmeans1d.npz", allow_pickle=False) as _file:
    KMEANS = dict(_file)
with np.load(HERE / "centroid_grad.npz", allow_pickle=False) as _file:
    GRADIENT = dict(_file)
STARTS = sorted(key.removesuffix(".init") for key in KMEANS if key.endswith(".init"))
OPTIMA = sorted(key.removesuffix(".optimal_sse") for key in KMEANS if key.endswith(".optimal_sse"))


def values(case: str) -> torch.Tensor:
    return torch.from_numpy(KMEANS[case.split(".")[0] + ".x"])


@pytest.mark.parametrize("case", STARTS)
@pytest.mark.parametrize("iterations", [1, 2, 5, 20, 200])
def test_lloyd_matches_scipy(case: str, iterations: int) -> None:
    start = torch.from_numpy(KMEANS[f"{case}.init"])
    found, _ = kmeans(values(case), len(start), start, iterations=iterations)
    np.testing.assert_allclose(found, KMEANS[f"{case}.lloyd{iterations}.centroids"], rtol=1e-9, atol=1e-13)
    assert squared_error(values(case), found) == pytest.approx(
        float(KMEANS[f"{case}.lloyd{iterations}.sse"]), rel=1e-9, abs=1e-15
    )


@pytest.mark.parametrize("case", [case for case in STARTS if not case.endswith("random")])
def test_starts_match(case: str) -> None:
    start = KMEANS[f"{case}.init"]
    found = initial_centroids(values(case), len(start), case.split(".")[2])
    np.testing.assert_allclose(found, start, rtol=1e-9)


@pytest.mark.parametrize("case", OPTIMA)
def test_optimum_matches_two_packages(case: str) -> None:
    wanted = KMEANS[f"{case}.optimal_centroids"]
    found, _ = optimal_kmeans(values(case), len(wanted))
    assert squared_error(values(case), found) == pytest.approx(
        float(KMEANS[f"{case}.optimal_sse"]), rel=1e-9, abs=1e-15
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-13)


def test_centroid_gradient_matches_autograd_of_the_dense_layer() -> None:
    """Their codebook has no reserved zero: ours puts theirs at entries 1 to 8 and masks by code 0."""
    codebook = torch.zeros(16)
    codebook[1:9] = torch.from_numpy(GRADIENT["codebook"])
    codes = torch.from_numpy((GRADIENT["index"] + 1) * GRADIENT["mask"]).to(torch.uint8)
    weight = SharedWeight(CodebookTensor(codebook, codes, 4)).double()
    dense = weight()
    x, g = torch.from_numpy(GRADIENT["x"]), torch.from_numpy(GRADIENT["g"])
    ((x @ dense.T) * g).sum().backward()
    np.testing.assert_allclose(weight.centroids.grad[:8], GRADIENT["dcodebook"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", json.loads((HERE / "relative_index.json").read_text()), ids=lambda case: case["name"])
def test_relative_index_matches_the_worked_cases(case: dict) -> None:
    positions = torch.tensor(case["positions"], dtype=torch.int64)
    fields, is_filler = sparse_index.relative(positions, case["bits"], case["length"])
    assert fields.tolist() == case["fields"]
    assert is_filler.int().tolist() == case["is_filler"]
    assert len(fields) == case["entries"]
