"""ONNX models with int8 linear layers, by ONNX Runtime's own quantiser: for it and, as QDQ, for OpenVINO.

dynamic   weights per output, activations per tensor and request; ONNX Runtime alone computes it so
static    weights per output, activations by ranges seen on the workload's requests (QuantizeLinear, DequantizeLinear)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from benchmarks.baselines.case_graph import CaseGraph, Inputs

_CALIBRATED_ON = 4


class Requests(CalibrationDataReader):
    """The first requests of a workload, as the calibration reads them."""

    def __init__(self, names: Sequence[str], graph: CaseGraph) -> None:
        self._names = names
        self._left: Iterator[Inputs] = (graph.inputs(number) for number in range(_CALIBRATED_ON))

    def get_next(self) -> dict | None:
        """Inputs by name; None after the last."""
        inputs = next(self._left, None)
        return None if inputs is None else dict(zip(self._names, inputs, strict=True))


def quantised(model: bytes, graph: CaseGraph, way: str, folder: Path) -> bytes:
    """The model with int8 linear layers.

    Args:
        model: in float32.
        graph: whose requests static ranges are taken from.
        way: "dynamic" or "static".
        folder: for intermediate files.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, target = Path(scratch, "float32.onnx"), Path(scratch, "int8.onnx")
        loaded = onnx.load_model_from_string(model)
        gemms_to_products(loaded)
        onnx.save(loaded, source)
        if way == "dynamic":
            quantize_dynamic(
                source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
        else:
            quantize_static(
                source,
                target,
                Requests([each.name for each in loaded.graph.input], graph),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                # Products of two activations, in attention, stay in float32, as ours do.
                extra_options={"MatMulConstBOnly": True},
            )
        return target.read_bytes()


def gemms_to_products(model: onnx.ModelProto) -> None:
    """Rewrite each Gemm with a constant matrix, in place, as a product and a sum, which is what quantisers know."""
    constants = {each.name: each for each in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.input[1] not in constants:
            nodes.append(node)
            continue
        is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
        weight = numpy_helper.to_array(constants[node.input[1]])
        name = f"{node.output[0]}_weight"
        weight = np.ascontiguousarray(weight.T if is_transposed else weight)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        has_sum = len(node.input) > 2
        product = f"{node.output[0]}_product" if has_sum else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product]))
        if has_sum:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    used = {name for node in nodes for name in node.input}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
