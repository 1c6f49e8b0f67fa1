"""Rows follow the losses; what nothing was measured of stays empty; every method has a colour and a plain name."""

from dataclasses import replace

from quad_tasks.core.evaluation.statistics import Comparison
from quad_tasks.experiments.diversity_report import (
    MEASURES,
    HeldOutLosses,
    MethodOutcome,
    Result,
    colour_of,
    draw,
    in_order,
    lay_out,
    plain,
)
from quad_tasks.experiments.lab import plots

METHOD = MethodOutcome(
    reference_loss=[5.0, 5.2],
    other_domains_bpb=[3.0, 3.1],
    scored_share=0.1,
    time_s=12.0,
    worst_domain_bpb=[4.0, 4.0],
    influence_share=[0.0, 0.1],
    tokens=[100, 100],
    domains={"law": 3.0},
    by_source={"a": 0.4, "b": 0.6},
    diversity={name: [1.0, 2.0] for name in MEASURES},
    flops=0.0,
)
METHODS = {"random": METHOD, "quad": replace(METHOD, reference_loss=[4.0, 4.1], flops=2e9)}
RESULT = Result(
    gain_share=0.9,
    gain_share_interval=(0.8, 1.0),
    quad_less_other={"random": Comparison(-1.0, -1.2, -0.8, 0.01)},
    quad_less_full_other_domains_bpb=None,
    shows=[],
    documents=60,
    budget_tokens=1000,
    seeds=2,
    building_s=[{}, {}],
    methods=METHODS,
    before=HeldOutLosses([6.0, 6.2], [3.0, 3.0], [4.0, 4.0]),
    scorers=[],
)


def test_the_lowest_loss_comes_first_with_its_difference_from_random_within_repeats():
    assert [name for name, _ in in_order(METHODS)] == ["quad", "random"]
    outcomes, varied = lay_out(RESULT).values()
    assert outcomes[0]["method"] == "Quad"
    assert outcomes[0]["reference loss"] == "4.050"
    assert outcomes[0]["reference loss, less random's"].startswith("-1.050 ± ")
    assert outcomes[1]["reference loss, less random's"] == ""
    assert (outcomes[0]["FLOPs"], outcomes[1]["FLOPs"]) == ("2.0e+09", "")
    assert [row["first source"] for row in varied] == ["b", "b"]


def test_without_other_domains_their_cells_and_panel_are_left_out():
    bare = {name: replace(one, other_domains_bpb=[None, None]) for name, one in METHODS.items()}
    result = replace(RESULT, methods=bare)
    (outcomes, _) = lay_out(result).values()
    assert {row["other domains, bits per byte"] for row in outcomes} == {""}
    assert len(draw(result)["outcome"].axes) == 1
    assert len(draw(RESULT)["outcome"].axes) == 2


def test_names_are_written_for_reading():
    assert [plain(name) for name in ("dsir", "quad_states", "full_influence")] == [
        "DSIR",
        "Quad states",
        "all influence scored",
    ]
    assert [colour_of(name) for name in ("quad_states", "random", "dsir")] == [plots.RED, plots.GREY, plots.BLUE]
