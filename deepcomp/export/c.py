"""Writes a network as a header and a source file of C99, which depend on nothing but the standard library."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Network, entries
from deepcomp.errors import RecipeError, shape_text
from deepcomp.export.program import Program
from deepcomp.runtime.lowering import lower

_PART = re.compile(r"^/\* @part (\w+)(?:: ([\w ]+))? \*/$", re.MULTILINE)
_MATH = re.compile(r"\b(\w+f\(|INFINITY|NAN)")


class Sources(NamedTuple):
    """The texts of `NAME.h` and `NAME.c`, and the bytes of their constants."""

    header: str
    source: str
    constants: int


def sources(network: Network, name: str, limits: Limits, coded: bool = False) -> Sources:
    """A network in C.

    Raises `RecipeError` for a name that C does not allow, `FormatError` for a network that is beyond the limits, and
    `UnsupportedLayerError` as `lowering.lower`.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name):
        raise RecipeError(f"name={name!r}: it must be a name of C: letters, digits and _, with a letter first.")
    program = Program(lower(network, limits), coded)
    return Sources(_header(network, name, program), _source(name, program), program.tables.bytes)


def _header(network: Network, name: str, program: Program) -> str:
    big, shapes = name.upper(), " and ".join(map(shape_text, network.input_shapes))
    left = sum(int((entries(one) != 0).sum()) for layer in network.layers for one in layer.weights.values())
    return f"""\
/* {_comment(network.name)}: a network with {left:,} weights that are not 0, written by deepcomp.

   input   {program.input_size:,} floats: {shapes}, the last axis fastest
   output  {program.output_size:,} floats
   flash   {program.tables.bytes:,} bytes of constants, besides the code
   RAM     {4 * program.memory.size:,} bytes of scratch memory, besides input and output

       static float scratch[{big}_SCRATCH];
       float input[{big}_INPUT], output[{big}_OUTPUT];
       {name}_run(input, output, scratch);

   It allocates nothing, and keeps nothing from call to call. Input, output and scratch must not overlap. */
#ifndef {big}_H
#define {big}_H

#define {big}_INPUT {program.input_size}
#define {big}_OUTPUT {program.output_size}
#define {big}_SCRATCH {max(program.memory.size, 1)} /* floats */

#ifdef __cplusplus
extern "C" {{
#endif

/* Run the network once; returns 0. */
int {name}_run(const float *input, float *output, float *scratch);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(name: str, program: Program) -> str:
    parts = _parts()
    needed = [part for part in parts if part in _closure(program.kernels, program.tables.coded)]
    kernels = "\n".join(parts[part][1] for part in needed)
    constants, steps = str(program.tables), "\n".join(_steps(program))
    text = f"{kernels}\n{constants}\n{steps}"
    headers = [f'"{name}.h"']
    headers += ["<float.h>"] * ("FLT_MAX" in text) + ["<limits.h>"] * ("INT_MAX" in text)
    headers += ["<math.h>"] * bool(_MATH.search(text)) + ["<stdint.h>"] * ("int8_t" in text or "int32_t" in text)
    includes = "\n".join(f"#include {header}" for header in headers)
    unused = "" if "scratch" in steps else "    (void)scratch;\n"
    return f"""\
{includes}

{kernels}
/* The constants, named after their layers. */

{constants}

int {name}_run(const float *input, float *output, float *scratch)
{{
{unused}{steps}
    return 0;
}}
"""


def _steps(program: Program) -> Iterator[str]:
    layer = None
    for step in program.steps:
        if step.layer != layer:
            layer = step.layer
            yield f"    /* {_comment(layer) or 'output'} */"
        address = program.memory.address
        yield "    " + step.text.format(*map(address, step.sources), to=address(step.target))


def _comment(text: str) -> str:
    """A name of a network or layer, which may be anything, as it can stand in a comment."""
    return re.sub(r"[^\w .,:/()+-]|\*/|/\*", "?", text, flags=re.ASCII)


def _closure(kernels: set[str], coded: bool) -> set[str]:
    """The parts of the kernels, and all that they need."""
    parts, found, pending = _parts(), set(), [*kernels]
    while pending:
        part = pending.pop()
        if part == "kernel":
            part = "coded" if coded else "direct"
        if part not in found:
            found.add(part)
            pending += parts[part][0]
    return found


@cache
def _parts() -> dict[str, tuple[list[str], str]]:
    """The parts of `kernels.c`, in its order: what each needs, and its text."""
    text = files("deepcomp.export").joinpath("kernels.c").read_text(encoding="utf-8")
    found = [*_PART.finditer(text)]
    ends = [*(one.start() for one in found[1:]), len(text)]
    return {
        one[1]: ((one[2] or "").split(), text[one.end() : end].strip("\n") + "\n")
        for one, end in zip(found, ends, strict=True)
    }
