"""ONNX: the network of any student whose task runs it on tensors.

What a network is called with is watched while the student answers two batches; axes that differ between them are
dynamic. So no student says what its inputs are called, and a new task exports without a line. PyTorch's exporter
(`torch.export`) gives the graph, onnxruntime runs it, and quantises it where asked: weights to int8 with a scale a row,
activations to uint8 as they come (dynamic). Weights use seven bits (`reduce_range`): with eight, processors without
VNNI saturate when they add up products, and give something else.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub.exporting.exporter import Exporter
from kdhub.rows import Example, Signals
from kdhub.student import Student

_OPERATOR = re.compile(r"(?:OpOverload\(op='|No (?:ONNX function|decompositions?) (?:found )?for )['\"]?([\w.:]+)")
_NOISY = ("onnxscript", "onnx_ir", "torch.onnx", "root", "torch")


class Onnx(Exporter):
    tolerance = {None: 1e-3, "int8": 0.25}

    def file(self, student: Student) -> str:
        return "onnx/model_qint8_avx2.onnx" if self.quantize else "onnx/model.onnx"

    def write(self, student: Student, examples: Sequence[Example], signal: str, folder: Path) -> None:
        part = student.exported
        calls = []
        with _watched(part, calls):
            for some in (examples[:1], examples):
                student.signals(some, signal)
        if not calls:
            raise CompatibilityError(
                f"a {type(student).__name__} does not run its {type(part).__name__} as a whole, so it has no ONNX graph"
            )
        graph = _Graph(part, calls[-1][0], signal)
        path = folder / self.file(student)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as beside:  # so that nobody sees half a file
            whole = Path(beside) / "model.onnx"
            _export(graph, calls, whole)
            if self.quantize:
                whole = _quantized(whole)
            whole.replace(path)

    def attach(self, student: Student, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        part = student.exported
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]

        def run(*given: Any, **named: Any) -> Signals:
            tensors = _tensors(part, given, named)
            feed = {name: np.ascontiguousarray(tensors[name].detach().cpu().numpy()) for name in names}
            return Signals(zip(outputs, map(torch.from_numpy, session.run(outputs, feed))))

        part.forward = run

    def usage(self, student: Student) -> str:
        opened = f'session = onnxruntime.InferenceSession("{{path}}/{self.file(student)}")\n'
        if not hasattr(student, "tokenizer") and not hasattr(student.module, "tokenizer"):
            return f"import onnxruntime\n\n{opened}print([(one.name, one.shape) for one in session.get_inputs()])"
        return (
            "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
            f"{opened}"
            'inputs = AutoTokenizer.from_pretrained("{path}")(["a text"], return_tensors="np")\n'
            "print(session.run(None, {one.name: inputs[one.name] for one in session.get_inputs()})[0].shape)"
        )


class _Graph(nn.Module):
    """A network with tensors by name for an input and the one output that is asked for."""

    def __init__(self, part: nn.Module, mapped: bool, signal: str):
        super().__init__()
        self.part, self.mapped, self.signal = part, mapped, signal
        self.output = signal

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        given = self.part(inputs) if self.mapped else self.part(**inputs)
        if isinstance(given, torch.Tensor):
            return given
        self.output = self.signal if self.signal in given else next(iter(given))
        return given[self.output]


def _tensors(part: nn.Module, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a network is called with, by name: from one mapping, or from arguments."""
    if given and isinstance(given[0], Mapping):
        values = given[0]
    else:
        values = {**dict(zip(list(signature(type(part).forward).parameters)[1:], given)), **named}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@contextlib.contextmanager
def _watched(part: nn.Module, calls: list[tuple[bool, dict[str, torch.Tensor]]]) -> Iterator[None]:
    """Note each call of a network: whether it got a mapping, and the tensors."""
    forward = part.forward

    def watching(*given: Any, **named: Any) -> Any:
        calls.append((bool(given) and isinstance(given[0], Mapping), _tensors(part, given, named)))
        return forward(*given, **named)

    part.forward = watching
    try:
        yield
    finally:
        del part.forward


def _export(graph: _Graph, calls: Sequence[tuple[bool, dict[str, torch.Tensor]]], path: Path) -> None:
    one, other = calls[0][1], max((tensors for _, tensors in calls), key=lambda t: next(iter(t.values())).shape[0])
    inputs = {name: tensor.detach().clone() for name, tensor in other.items()}
    dynamic = torch.export.Dim.DYNAMIC
    axes = {
        name: {axis: dynamic for axis, size in enumerate(tensor.shape) if not axis or size != one[name].shape[axis]}
        for name, tensor in inputs.items()
    }
    was = graph.training
    graph.eval()
    try:
        with torch.no_grad(), _quiet():
            graph(inputs)  # names the output
            program = torch.onnx.export(
                graph, (), kwargs={"inputs": inputs}, dynamo=True, dynamic_shapes={"inputs": axes}, verbose=False,
                input_names=list(inputs), output_names=[graph.output],
            )  # fmt: skip
            program.save(str(path))
    except OSError:
        raise
    except Exception as error:
        raise CompatibilityError(
            f"{type(graph.part).__name__} cannot be exported to ONNX: {_cause(error)}",
            hint="its weights are as before; other formats: kdhub list exporters",
        ) from error
    finally:
        graph.train(was)


def _cause(error: BaseException) -> str:
    """The operator that ONNX does not have, else the first line of what went wrong at the bottom."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _OPERATOR.search(str(seen)):
            return f"ONNX has no operator for {found[1]}"
        last, seen = seen, seen.__cause__
    lines = [line for line in str(last).splitlines() if line.strip()]
    return f"{type(last).__name__}: {lines[0][:200] if lines else ''}"


def _quantized(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    smaller = path.with_name("quantized.onnx")
    with _quiet():
        quantize_dynamic(path, smaller, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return smaller


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of themselves."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
