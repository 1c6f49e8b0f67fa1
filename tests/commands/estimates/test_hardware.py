"""Planned memory follows from shape and workers; a device that is not here has rates that say what they rest on."""

from dataclasses import replace

import pytest
from small_pool import small_config

from quad_tasks.commands.estimates import hardware
from quad_tasks.commands.estimates.hardware import (
    Device,
    check_device_memory,
    describe_device,
    plan_memory,
    planned_batch,
    rates_on,
)
from quad_tasks.commands.estimates.probe import Rates, Shape, WorkerRates
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.lm.flops import ModelSize
from quad_tasks.stages.selection.training_memory import PROCESS_BYTES

SIZE = ModelSize(maps=0, reached=0, tracked=0, head=0, attention=0, attention_reached=0)  # of no use here
SMOLLM2_135M = Shape(
    parameters=134_515_008, forward_flops=2.7e8, factor_values=396_000_000, tracked=106_168_320, bytes_per_token=4.0,
    dimension=128, width=576, covariance_bytes=1_159_000_000, factor_groups=5, activation_bytes=1_704_960, size=SIZE,
)  # fmt: skip
SHAPE = Shape(
    parameters=10**9, forward_flops=2e9, factor_values=10**9, tracked=8 * 10**8, bytes_per_token=4.0, dimension=128,
    width=2048, covariance_bytes=8 * 10**8, factor_groups=4, activation_bytes=4_000_000, size=SIZE,
)  # fmt: skip
HERE = Rates(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.5, 7.0, WorkerRates(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))


def planned(tmp_path, **changes):
    settings = {"model__source": "a/model", "model__dtype": "bfloat16", "training__frontier": [], **changes}
    return plan_memory(parse_config(small_config(tmp_path, str(tmp_path), **settings), "plan"), SMOLLM2_135M)


def test_a_model_of_135_million_parameters_and_two_workers_stay_under_ten_gigabytes(tmp_path):
    memory = planned(tmp_path, compute__workers=2, model__window_tokens=256, model__batch_tokens=2048)
    assert memory["most"] == max(memory["fit"], memory["bandit"], memory["train"])
    assert 5e9 < memory["most"] < 10e9
    activations = 314 * 1_704_960  # half a gibibyte of them, though 2,048 tokens are configured
    assert memory["train"] == PROCESS_BYTES + 2 * (PROCESS_BYTES + 16 * SMOLLM2_135M.parameters + activations)


def test_more_workers_and_wider_numbers_take_more_and_a_training_alone_takes_one_worker(tmp_path):
    two, four = (planned(tmp_path, compute__workers=n, training__seeds=2) for n in (2, 4))
    assert all(four[stage] > two[stage] for stage in ("fit", "bandit", "train"))
    assert planned(tmp_path, model__dtype="float32")["bandit"] > planned(tmp_path)["bandit"]
    alone = planned(tmp_path, compute__workers=4, training__control=False)
    one = planned(tmp_path, compute__workers=1, training__control=False)
    assert alone["train"] == one["train"] + 3 * PROCESS_BYTES  # the other three hold no model


def test_fewer_trainings_at_once_keep_to_a_limit_and_what_cannot_is_refused_by_the_stage(tmp_path):
    settings = {"compute__workers": 2, "training__seeds": 2, "model__window_tokens": 128, "model__batch_tokens": 256}
    free = planned(tmp_path, **settings)
    limited = planned(tmp_path, **settings, compute__memory_limit=free["train"] - 1)
    assert limited["train"] < free["fit"] < free["train"]
    assert limited["fit"] == free["fit"]
    with pytest.raises(
        ConfigError, match=r"memory_limit: expected a fit of at most 4,000,000,000 .* lower compute.workers"
    ):
        planned(tmp_path, **settings, compute__memory_limit="4GB")


def test_the_conditional_loss_trains_a_copy_and_scores_with_two_models_in_float32(tmp_path):
    memory = planned(tmp_path, bandit__scorer="conditional_loss", compute__workers=2)
    read, trained = 64 * 8 * 1_704_960, 314 * 1_704_960  # model.batch_tokens, and the half gibibyte of a pass
    assert memory["fit"] == 3 * PROCESS_BYTES + 16 * SMOLLM2_135M.parameters + trained
    models = 2 * 4 * SMOLLM2_135M.parameters
    assert memory["bandit"] == PROCESS_BYTES + 2 * (PROCESS_BYTES + models + read)


def test_no_remedy_of_the_conditional_loss_is_a_key_that_changes_nothing_there(tmp_path):
    """Its copies are float32 and there are no factors: neither `model.dtype` nor `factors` keys save a byte."""
    settings = {"bandit__scorer": "conditional_loss", "compute__workers": 2}
    memory = planned(tmp_path, **settings)
    messages = [refusal(planned, tmp_path, **settings, compute__memory_limit=memory["fit"] - 1)]
    messages.append(refusal(planned, tmp_path, **settings, compute__memory_limit=memory["bandit"] - 1))
    large = replace(SMOLLM2_135M, parameters=10**10)
    messages.append(refusal(check_device_memory, "l40s", config_of(tmp_path, **settings), large))
    assert ["a fit" in text for text in messages] == [True, False, True]
    assert not [text for text in messages if "factors." in text or "bfloat16" in text]


def test_copies_of_the_weights_for_scoring_by_losses_are_planned(tmp_path):
    exact, copied = (
        planned(tmp_path, compute__workers=2, bandit__scorer=scorer)["bandit"] for scorer in ("exact", "forward_only")
    )
    tracked, parameters = SMOLLM2_135M.tracked, SMOLLM2_135M.parameters
    assert copied - exact == 2 * 4 * (2 * tracked + parameters - tracked)


def test_a_batch_that_is_to_be_measured_is_planned_from_the_devices_memory(tmp_path):
    settings = {"model__dtype": "bfloat16", "model__window_tokens": 1024, "compute__device": "cpu"}
    of = {n: config_of(tmp_path, model__batch_tokens=n, **settings) for n in (512, "auto")}
    assert planned_batch(of[512], SMOLLM2_135M, "h100", 1) == (of[512], {"value": 512, "basis": "configured"})
    config, said = planned_batch(of["auto"], SMOLLM2_135M, None, 2)
    assert (config.model.batch_tokens, said["basis"]) == (2048, "a CPU's")
    for device, memory in (("l40s", 48e9), ("h200", 141e9)):
        config, said = planned_batch(of["auto"], SMOLLM2_135M, device, 1)
        room = 0.8 * (memory - 2 * SMOLLM2_135M.parameters - 2**29) - 1_159_000_000 - 4 * SMOLLM2_135M.tracked
        tokens = int(min(room / (SMOLLM2_135M.activation_bytes / 2), 65_536) // 1024 * 1024)
        assert config.model.batch_tokens == said["value"] == tokens
        assert said["basis"] == "estimated; measured when the run begins"


def test_workers_that_share_a_gpu_are_planned_with_a_batch_that_fits_it_together(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "pick_device", lambda wanted: "cuda")
    device = type("Properties", (), {"total_memory": 48 * 10**9})
    monkeypatch.setattr(hardware.torch.cuda, "get_device_properties", lambda index: device)
    config = config_of(tmp_path, model__batch_tokens="auto", model__window_tokens=256)
    for sharing in (1, 4):
        found, _ = planned_batch(config, SMOLLM2_135M, None, sharing)
        weights, tokens = 2 * SMOLLM2_135M.parameters, found.model.batch_tokens
        fit = SMOLLM2_135M.covariance_bytes + 4 * SMOLLM2_135M.tracked
        held = sharing * (2**29 + weights + fit + tokens * SMOLLM2_135M.activation_bytes / 2)
        assert 0.75 * 48e9 < held < 48e9


def test_batches_that_lie_on_a_gpu_take_nothing_of_the_machine_s_memory(tmp_path):
    """However large they are, and whatever `compute.memory_limit` says."""
    settings = {"model__window_tokens": 1024, "compute__workers": 2, "compute__memory_limit": "32GB"}
    of = [config_of(tmp_path, model__batch_tokens=n, **settings) for n in (1024, 65_536)]
    with pytest.raises(ConfigError, match=r"memory_limit: expected a fit of at most 32,000,000,000"):
        plan_memory(of[1], SMOLLM2_135M)
    small, large = (plan_memory(config, SMOLLM2_135M, on_gpu=True) for config in of)
    assert small == large
    assert large["train"] == PROCESS_BYTES + 2 * (PROCESS_BYTES + 16 * SMOLLM2_135M.parameters)


def refusal(function, *arguments, **settings):
    with pytest.raises(ConfigError) as error:
        function(*arguments, **settings)
    return str(error.value)


def config_of(tmp_path, **changes):
    return parse_config(small_config(tmp_path, str(tmp_path), **{"model__dtype": "bfloat16", **changes}), "plan")


def test_a_model_s_rates_are_its_operations_over_the_share_of_the_device_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setitem(hardware.DEVICES, "g1", Device(1e14, 10**11, {"score": {1e9: 0.5}}))
    found = rates_on("g1", config_of(tmp_path), HERE, SHAPE)
    assert found.workers.score_token == pytest.approx(3 * 2e9 / (1e14 * 0.5))
    assert found.workers.train_token == found.pretrain_token == pytest.approx(3 * 2e9 / (1e14 * 0.28))
    assert found.workers.fit_token == pytest.approx((4 * 2e9 + 4 * 1e9) / (1e14 * 0.05))
    assert (found.workers.ingest_byte, found.workers.embed_byte) == (1.0, 3.0)
    assert replace(found, pretrain_token=6.0, workers=HERE.workers) == HERE
    slower = rates_on("g1", config_of(tmp_path, model__dtype="float32"), HERE, SHAPE)
    assert slower.workers.score_token > found.workers.score_token


def test_every_number_says_what_it_rests_on(monkeypatch):
    monkeypatch.setitem(hardware.DEVICES, "g1", Device(1e14, 10**11, {"score": {1e9: 0.5}}))
    described = describe_device("g1", 10**9)
    assert described["bfloat16_flops"] == {"value": 1e14, "basis": "data sheet"}
    assert described["share_of_data_sheet"]["score"] == {"value": 0.5, "basis": "measured"}
    assert described["share_of_data_sheet"]["train"]["basis"] == "assumed"


def test_a_measured_share_is_interpolated_in_the_logarithm_of_the_models_size():
    device = Device(1e14, 10**11, {"score": {1e8: 0.1, 1e10: 0.5}})
    sizes = {10**7: 0.1, 10**8: 0.1, 10**9: 0.3, 10**10: 0.5, 10**11: 0.5}
    assert [device.share("score", n)[0] for n in sizes] == pytest.approx(list(sizes.values()))


def test_an_unknown_device_and_one_that_is_too_small_are_refused_with_what_to_change(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"--device: expected one of a100, h100, h200, l40s, found 'h101'"):
        rates_on("h101", config, HERE, SHAPE)
    monkeypatch.setitem(hardware.DEVICES, "g1", Device(1e14, 6 * 10**9, {}))
    with pytest.raises(ConfigError, match=r"--device g1: expected a fit of at most 6,000,000,000 bytes, .*max_factor"):
        rates_on("g1", config, HERE, SHAPE)
    rates_on("h100", config, HERE, SHAPE)
