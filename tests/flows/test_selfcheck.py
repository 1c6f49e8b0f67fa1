"""The self-check holds: a product that fails it does not pass its tests."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.selfcheck import measure_selfcheck
from quad_tasks.config.schema import ConfigError


@pytest.fixture(scope="module")
def found(dask_client, tmp_path_factory):
    """What the command printed as JSON."""
    workspace = tmp_path_factory.mktemp("workspace")
    result = CliRunner().invoke(app, ["experiment", "selfcheck", "--workspace", str(workspace), "--quiet", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_four_verdicts_hold(found):
    assert [verdict["check"] for verdict in found["verdicts"] if not verdict["holds"]] == []
    assert len(found["verdicts"]) == 4
    # two thirds of what is selected where length alone differs is short: lengths are told apart, and pay nothing
    assert found["short"]["selected"] != pytest.approx(found["short"]["pool"], abs=0.05)
    assert found["gain"]["planted"]["low"] > found["gain"]["shuffled"]["high"]
    assert found["leaks"] == {"planted": 60, "set_aside": 60, "others_set_aside": 0}


def test_a_small_size_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--quick: the self-check has one size"):
        measure_selfcheck(str(tmp_path), None, quick=True)
    assert list(tmp_path.iterdir()) == []
