"""Triton Server's `config.pbtxt`, written from the contract."""

from __future__ import annotations

import json

from serving.contract import PARAMETER, Contract
from serving.wire_input import Input


def config_pbtxt(contract: Contract) -> str:
    """The model configuration, in protobuf text format.

    One call carries jagged requests of its own, so the server's batch dimension is off (`max_batch_size: 0`).
    There is one instance: it uses all of its threads for each call.
    """
    inputs = ",\n".join(_tensor(spec.name, spec.dtype, _dims(spec)) for spec in contract.inputs)
    outputs = ",\n".join(_tensor(name, "FP32", f"-1, {len(contract.tasks)}") for name in contract.outputs)
    return (
        f"name: {json.dumps(contract.model)}\n"
        'backend: "python"\n'
        "max_batch_size: 0\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        "instance_group [ { kind: KIND_CPU, count: 1 } ]\n"
        f"parameters {{ key: {json.dumps(PARAMETER)},"
        f" value: {{ string_value: {_quoted(contract.to_json())} }} }}\n"
    )


def _tensor(name: str, dtype: str, dims: str) -> str:
    return f"  {{ name: {json.dumps(name)}, data_type: TYPE_{dtype}, dims: [ {dims} ] }}"


def _dims(spec: Input) -> str:
    return "-1" if spec.max_values is None else f"-1, {spec.max_values}"


def _quoted(text: str) -> str:
    """A protobuf string of the contract's JSON, which is ASCII and has no control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
