"""A recurrent network, and students that are one."""

import torch
from kdhub_tasks.classification.students import network
from torch import nn


class Recurrent(nn.Module):
    """Gated recurrent units and a linear layer on the last state."""

    def __init__(self, shape, classes, width=8, mean=0.0, std=1.0):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))
        self.cells = nn.GRU(shape[1], width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs):
        _, last = self.cells((inputs["x"] - self.mean) / self.std)
        return {"logits": self.head(last[0]), "features": last[0]}


def gru(argument, context):
    """`gru:8`: so many units."""
    return network(context, {"network": "recurrent", "width": int(argument)}, f"gru:{argument}")
