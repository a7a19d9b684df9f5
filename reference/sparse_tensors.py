"""Sparse weights as they are multiplied: two of four columns kept, or square blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

_VALUES_A_NUMBER = 8  # 2-bit positions in an int16


def expand(values: Tensor, positions: Tensor) -> Tensor:
    """The dense weight of a :class:`SparseTensor`'s parts, unchecked.

    Args:
        values: ``[out, in / 2]``.
        positions: int16 ``[out, in / 16]``.

    Returns:
        ``[out, in]``, in the type of the values.

    Example:
        >>> sparse = SparseTensor.from_dense(torch.tensor([[0.0, 5.0, 0.0, 6.0] * 4]))
        >>> expand(sparse.values, sparse.positions)[0, :4]
        tensor([0., 5., 0., 6.])

    Chapter: advanced/kernels
    """
    rows, columns = values.shape[0], 2 * values.shape[1]
    dense = values.new_zeros(rows, columns // 4, 4)
    return dense.scatter(-1, _columns(positions).view(rows, -1, 2), values.view(rows, -1, 2)).view(rows, columns)


def _columns(positions: Tensor) -> Tensor:
    """int64 ``[out, in / 2]``, 0 to 3."""
    shifts = 2 * torch.arange(_VALUES_A_NUMBER, device=positions.device)
    return (positions.long().unsqueeze(-1) >> shifts & 3).flatten(1)


@dataclass(frozen=True, eq=False)  # comparing tensors field by field has no truth value
class SparseTensor:
    """A weight of which each four columns keep two, and the others are zero: 2:4 sparsity.

    Attributes:
        values: ``[out, in / 2]``, floating point: the kept weights in the order of their columns.
        positions: int16 ``[out, in / 16]``: column of each kept weight in its four, two bits each,
            the first in the lowest bits.

    Raises:
        ValueError: types or shapes are others, or the two positions of a four do not ascend.

    Source: the pattern is that of NVIDIA's sparse tensor cores (Mishra et al. 2021); the layout is our own.

    Example:
        >>> sparse = SparseTensor.from_dense(torch.tensor([[0.0, 5.0, 0.0, 6.0] * 4]))
        >>> sparse.values[0, :2], f"{sparse.positions[0, 0].item() & 0xFFFF:016b}"  # positions 1 and 3, four times
        (tensor([5., 6.]), '1101110111011101')
        >>> sparse.to_dense()[0, :4]
        tensor([0., 5., 0., 6.])

    Chapter: advanced/kernels
    """

    values: Tensor
    positions: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None) -> "SparseTensor":
        """Keep two of each four columns.

        Args:
            weight: ``[out, in]``, floating point, ``in`` a multiple of 16.
            mask: bool of the same shape, True where a weight is kept, at most two in each four. None: the weights
                that are not zero.

        Raises:
            TypeError: ``weight`` is not of floating point, or ``mask`` not of bool.
            ValueError: shapes do not fit, or more than two of four are to be kept.
        """
        if not weight.is_floating_point() or (mask is not None and mask.dtype != torch.bool):
            found = weight.dtype if mask is None else mask.dtype
            raise TypeError(f"weight and mask must be of floating point and bool, got {weight.dtype} and {found}")
        if weight.ndim != 2 or weight.shape[1] % 16:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it may be a matrix of a multiple of 16 columns")
        if mask is not None and mask.shape != weight.shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; weight needs {tuple(weight.shape)}")
        rows, columns = weight.shape
        kept = ((weight != 0) if mask is None else mask).view(rows, columns // 4, 4)
        if bool((kept.sum(-1) > 2).any()):
            worst = int((kept.sum(-1) > 2).flatten().nonzero()[0])
            row, group = divmod(worst, columns // 4)
            raise ValueError(f"row {row} keeps more than two of columns {4 * group} to {4 * group + 3}")
        # The kept columns first, then dropped ones to make two; both pairs ascending.
        order = torch.argsort((~kept).to(torch.uint8), dim=-1, stable=True)[..., :2].sort(-1).values
        values = torch.where(kept, weight.view(rows, columns // 4, 4), 0).gather(-1, order)
        shifts = 2 * torch.arange(_VALUES_A_NUMBER, device=weight.device)
        packed = (order.reshape(rows, -1, _VALUES_A_NUMBER) << shifts).sum(-1)
        positions = torch.where(packed >= 2**15, packed - 2**16, packed).to(torch.int16)
        return cls(values.reshape(rows, -1).contiguous(), positions)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] % _VALUES_A_NUMBER or not self.values.is_floating_point():
            raise ValueError(
                f"values is {self.values.dtype} of shape {tuple(self.values.shape)}; they may be a floating-point "
                "matrix of a multiple of 8 columns"
            )
        expected = (self.values.shape[0], self.values.shape[1] // _VALUES_A_NUMBER)
        if self.positions.dtype != torch.int16 or tuple(self.positions.shape) != expected:
            shape, kind = tuple(self.positions.shape), self.positions.dtype
            raise ValueError(f"positions is {kind} of shape {shape}; values need int16 of {expected}")
        pairs = _columns(self.positions).view(-1, 2)
        if bool((pairs[:, 0] >= pairs[:, 1]).any()):
            raise ValueError("positions of two values of a group do not ascend")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.values.shape[0], 2 * self.values.shape[1]

    def to_dense(self) -> Tensor:
        """``[out, in]``, in the type of the values."""
        return expand(self.values, self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of values and positions, as stored."""
        return self.values.nbytes + self.positions.nbytes


@dataclass(frozen=True, eq=False)
class BlockSparseTensor:
    """A weight stored as its square blocks that are not zero (block-CSR).

    Attributes:
        blocks: ``[stored, size, size]``, floating point, block row by block row, ascending columns.
        crow: int32 ``[out / size + 1]``, first stored block of each block row, and their number.
        column: int32 ``[stored]``, block column of each block.
        order: int32 ``[out / size]``, block rows by falling number of blocks.
        columns: ``in``.

    Raises:
        ValueError: types or shapes are others, or the indices do not describe such a matrix.

    Example:
        >>> weight = torch.zeros(4, 6)
        >>> weight[2:, 4:] = 7.0
        >>> sparse = BlockSparseTensor.from_dense(weight, size=2)  # one block of six is stored
        >>> sparse.blocks.shape, sparse.crow, sparse.column  # none in block row 0, one in row 1, at column 2
        (torch.Size([1, 2, 2]), tensor([0, 0, 1], dtype=torch.int32), tensor([2], dtype=torch.int32))

    Chapter: advanced/kernels
    """

    blocks: Tensor
    crow: Tensor
    column: Tensor
    order: Tensor
    columns: int

    @classmethod
    def from_dense(cls, weight: Tensor, size: int) -> "BlockSparseTensor":
        """Store the blocks of ``weight`` that hold something other than zero.

        Args:
            weight: ``[out, in]``, floating point, both multiples of ``size``.
            size: rows and columns of a block.

        Raises:
            TypeError: ``weight`` is not of floating point.
            ValueError: ``size`` does not divide the shape.
        """
        if not weight.is_floating_point():
            raise TypeError(f"weight is {weight.dtype}; it may be of floating point")
        if weight.ndim != 2 or size < 1 or weight.shape[0] % size or weight.shape[1] % size:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it may be a matrix of multiples of {size}")
        rows, columns = weight.shape[0] // size, weight.shape[1] // size
        tiles = weight.view(rows, size, columns, size).transpose(1, 2)
        kept = (tiles != 0).flatten(2).any(-1)
        count = kept.sum(1)
        crow = torch.cat([count.new_zeros(1), count.cumsum(0)]).to(torch.int32)
        order = torch.argsort(count, descending=True, stable=True).to(torch.int32)
        column = kept.nonzero()[:, 1].to(torch.int32)
        return cls(tiles[kept].contiguous(), crow, column, order, weight.shape[1])

    def __post_init__(self) -> None:
        blocks, crow, column = self.blocks, self.crow.long(), self.column.long()
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or not blocks.is_floating_point():
            raise ValueError(
                f"blocks is {blocks.dtype} of shape {tuple(blocks.shape)}; it may be square blocks of floats"
            )
        for name in ("crow", "column", "order"):
            if (tensor := getattr(self, name)).dtype != torch.int32 or tensor.ndim != 1:
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it may be int32 of one axis"
                )
        if self.columns % blocks.shape[1]:
            raise ValueError(f"columns is {self.columns}; it may be a multiple of {blocks.shape[1]}, a block's side")
        if not len(crow) or crow[0] != 0 or crow[-1] != len(blocks) or bool((crow.diff() < 0).any()):
            raise ValueError(f"crow must ascend from 0 to {len(blocks)}, the number of blocks")
        within = (column >= 0) & (column < self.columns // blocks.shape[1])
        if len(column) != len(blocks) or not bool(within.all()):
            raise ValueError(f"column must hold {len(blocks)} block columns below {self.columns // blocks.shape[1]}")
        row = torch.arange(len(crow) - 1, device=crow.device).repeat_interleave(crow.diff())
        if bool(((row * self.columns + column).diff() <= 0).any()):
            raise ValueError("column must ascend within each block row; a block that is there twice would count twice")
        if not torch.equal(self.order.long().sort().values, torch.arange(len(crow) - 1, device=crow.device)):
            raise ValueError(f"order must hold each of the {len(crow) - 1} block rows once")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (len(self.crow) - 1) * self.blocks.shape[1], self.columns

    def to_dense(self) -> Tensor:
        """``[out, in]``, in the type of the blocks."""
        size = self.blocks.shape[1]
        rows, columns = self.shape[0] // size, self.columns // size
        tiles = self.blocks.new_zeros(rows, columns, size, size)
        row = torch.arange(rows, device=self.crow.device).repeat_interleave(self.crow.long().diff())
        tiles[row, self.column.long()] = self.blocks
        return tiles.transpose(1, 2).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of blocks and indices, as stored."""
        return sum(tensor.nbytes for tensor in (self.blocks, self.crow, self.column, self.order))
