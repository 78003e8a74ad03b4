"""Relational distillation by distances (arXiv:1904.05068, eq. 4): pairs as far apart as for the teacher."""

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import smooth_l1_loss

from kdhub import ObjectiveMethod
from kdhub.method import TrainingOptions


class Orbit(ObjectiveMethod):
    """Distances of a batch, each side divided by its mean, under Huber's loss, and a learned scale as an extra."""

    batchwise = "distances are those between the texts of a batch"

    class Options(TrainingOptions):
        lr: float = Field(3e-4, gt=0, description="peak learning rate")

    def extras(self, student, teacher):
        return {"scale": nn.Linear(1, 1)}

    def objective(self, student, teacher, batch, progress):
        ours, theirs = relations(student.embedding), relations(teacher.embedding.float())
        return {"distance": smooth_l1_loss(self.modules["scale"](ours.unsqueeze(-1)).squeeze(-1), theirs)}


def relations(vectors):
    """Distances of all pairs (n (n - 1) / 2,), divided by their mean."""
    distances = torch.pdist(vectors)
    return distances / distances.mean().clamp_min(1e-6)
