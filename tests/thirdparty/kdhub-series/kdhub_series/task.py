"""Time series to one class of a list."""

import numpy as np
from kdhub_tasks.classification.arrays import ArrayClassification

from kdhub.errors import DataError


class SeriesClassification(ArrayClassification):
    """Rows have `series`, steps x channels, and `label`."""

    name = "series-classification"
    column = "series"

    def read(self, value):
        x = np.asarray(value, np.float32)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise DataError(f"a series is steps x channels of finite numbers, not {str(value)[:40]}")
        return x

    def tiny_recipe(self, folder):
        from kdhub import open_student

        facts = {"classes": ["sine", "square", "saw"], "shape": [16, 1], "mean": 0.0, "std": 1.0}
        teacher = folder / "teacher"
        teacher.mkdir(exist_ok=True)
        open_student("gru:6", task=self.name, seed=3, facts=facts).save(teacher)
        return {
            "teacher": {"source": f"path:{teacher}"},
            "student": "gru:4",
            "data": {"train": [{"source": "waves", "split": "train", "limit": 48}]},
            "evaluation": {"data": [{"source": "waves", "split": "test", "limit": 24}], "cost": False},
        }
