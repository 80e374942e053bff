"""The token embedding as a package: one table, looked up by any number of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, get_new_symbol, types
from numpy.typing import NDArray

from pulse_edge.export.coreml.compress import constant, matrix, take_integers
from pulse_edge.export.coreml.package import FLOOR, convert, program
from pulse_edge.export.weights import Precision
from pulse_edge.model.quantized import QuantizedWeight


def convert_embedding(
    path: Path, table: NDArray[np.float32] | QuantizedWeight, how: Precision, longest: int
) -> Any:
    """Convert the embedding table [V, H] to a package.

    Input: ``input_ids`` int32 [1, S], S from 1 to ``longest``. Output: ``inputs_embeds`` [1, S, H]. The
    table is not rounded to integers here; those of the checkpoint are taken. It has no state, so a flexible
    length harms nothing here.

    Returns:
        The model, for `package.finish`.
    """
    with Function({"input_ids": mb.TensorSpec((1, get_new_symbol()), types.int32)}, FLOOR) as lookup:
        if isinstance(table, QuantizedWeight):
            rows = matrix("embed_tokens", take_integers(table, how))
        else:
            rows = constant("embed_tokens.weight", table.astype(how.table))
        lookup.set_outputs(
            [mb.gather(x=rows, indices=lookup.inputs["input_ids"], axis=0, name="inputs_embeds")]
        )
    flexible = ct.TensorType(name="input_ids", shape=(1, ct.RangeDim(1, longest, 1)), dtype=np.int32)
    return convert(program({"main": lookup}), path, inputs=[flexible])
