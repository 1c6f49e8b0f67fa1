import pytest
from tiny_data import SIZE

from quad_tasks.core.lm.model import fresh_llama


@pytest.fixture
def model():
    """A Llama of one layer and 64 tokens, with windows of 32."""
    return fresh_llama(SIZE, 64, 32, seed=0)
