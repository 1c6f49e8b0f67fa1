import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _load_tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The tiny models and their dense references (the test folders are not packages)."""
    return _load_tiny_models()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
