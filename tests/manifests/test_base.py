"""What every manifest keeps to: frozen, no unknown field, volatile fields that exist."""

import importlib
import pkgutil

import pytest
from pydantic import ValidationError

from quad_tasks import manifests
from quad_tasks.manifests.base import Manifest
from quad_tasks.manifests.run import ExperimentRecord, PinnedPool


def every_manifest() -> list[type[Manifest]]:
    for module in pkgutil.iter_modules(manifests.__path__, f"{manifests.__name__}."):
        importlib.import_module(module.name)
    return [model for model in Manifest.__subclasses__() if model.__module__.startswith(manifests.__name__)]


@pytest.mark.parametrize("model", every_manifest(), ids=lambda model: model.__name__)
def test_a_manifest_is_frozen_and_names_its_own_volatile_fields(model):
    assert model.model_config["frozen"]
    assert isinstance(model.FORMAT, int)
    if model is not ExperimentRecord:
        assert model.model_config["extra"] == "forbid"
        assert set(model.model_fields) >= model.VOLATILE


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="colour"):
        PinnedPool.model_validate({"version": "v", "digest_of_version": "d", "colour": "red"})
