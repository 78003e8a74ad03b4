"""What one row of a stored signal holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdhub.errors import StoreError

# Storage type -> (numpy type, name in the safetensors format). "int8" is a code: see `Field`.
DTYPES = {
    "float32": (np.dtype("<f4"), "F32"),
    "float16": (np.dtype("<f2"), "F16"),
    "int8": (np.dtype("|i1"), "I8"),
    "int32": (np.dtype("<i4"), "I32"),
    "int64": (np.dtype("<i8"), "I64"),
    "uint8": (np.dtype("|u1"), "U8"),
}


@dataclass(frozen=True)
class Field:
    """One array of a signal: its type in the store and the shape of one row.

    Attributes:
        name: as the teacher's result names it ("embedding", "logits.values", ...).
        dtype: float32 | float16 | int32 | int64 | uint8, stored as they are, or int8: floats as `codes * scale` with
            one float16 scale for each vector (row, or item of a ragged row). The scale is rounded up, so codes never
            clip and |value - stored| <= scale / 2 with scale <= max|vector| / 127 * (1 + 2**-10) + 2**-24: less than
            0.4 % of the vector's largest magnitude, plus 3e-8.
        shape: of one row; of one item where ragged.
        ragged: rows have different numbers of items (tokens, bytes): values [total, *shape] and offsets [rows + 1].
    """

    name: str
    dtype: str = "float16"
    shape: tuple[int, ...] = ()
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise StoreError(f"field {self.name!r} has the storage type {self.dtype!r}, known are {', '.join(DTYPES)}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
