"""How a variable of any dtype is stored in a file of weights alone."""

from collections.abc import Mapping
from typing import Any

from deepcomp.dcz.codes import Shape

FLOATS = ("float32", "float16", "bfloat16")  # dtypes whose values are stored as they are


def stored_shape(options: Mapping[str, Any]) -> Shape:
    """The shape in which the values of a variable are stored: with an axis of their bits if they are no floats."""
    shape, dtype = options["shape"], options["dtype"]
    if dtype in FLOATS:
        return shape or (1,)
    bits = 8 if dtype == "bool" else int("".join(c for c in dtype if c.isdigit()))
    return (*shape, max(1, bits // 16))


def plan(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, dict[str, Shape]]:
    """The output and the weights of the kind Variable, which passes its input on."""
    stored = stored_shape(options)
    return shape, {"kernel" if len(stored) > 1 else "values": stored}
