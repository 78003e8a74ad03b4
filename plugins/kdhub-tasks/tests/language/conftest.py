"""A tiny language model, and saved ones as teachers."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.student import BuildContext


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))


@pytest.fixture
def saved():
    """Opens a folder as a teacher."""
    return lambda folder: kdhub.open_teacher(f"path:{folder}", "causal-lm")
