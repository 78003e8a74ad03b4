"""An exporter of a plugin, for tests of exports."""

from __future__ import annotations

import numpy as np
import torch

from kdhub import ExporterSpec, hookimpl
from kdhub.exporting import exporter


class Numbers(exporter.Exporter):
    """A format of a plugin: the weights as NumPy arrays, off by `wrong`."""

    tolerance = {None: 1e-3, "half": 0.1}
    wrong = 0.0

    def file(self, student):
        return "numbers/weights.npz"

    def write(self, student, examples, signal, folder):
        (folder / "numbers").mkdir(exist_ok=True)
        kept = np.float16 if self.quantize else np.float32
        state = {n: (t + self.wrong).numpy().astype(kept) for n, t in student.module.state_dict().items()}
        np.savez(folder / self.file(student), **state)

    def attach(self, student, path):
        student.module.load_state_dict({n: torch.from_numpy(a).float() for n, a in np.load(path).items()})

    def usage(self, student):
        return 'import numpy\nprint(list(numpy.load("{path}/numbers/weights.npz")))'


@hookimpl
def kdhub_exporters():
    yield ExporterSpec(name="numbers", target="toy_export:Numbers", quantize=("half",), summary="arrays")
    yield ExporterSpec(name="far", target="toy_export:Numbers", requires=("no_such_module",), extra="kdhub[far]")
