"""The confidence cascade: threshold and costs by hand, its course, its choice, resuming."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import pytest
import torch

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import config_from_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.mdp import PruningGate
from rlprune.sweep.estimate import ImageFacts, NetworkFacts, memory_estimate
from rlprune.training import cascade, methods
from rlprune.training.cascade import CANDIDATES, LARGE, SMALL, Pair
from rlprune.training.effort import training_images
from rlprune.training.evaluate import Measurement, Passes
from rlprune.training.phases import plan_units
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Interrupted, Reporter
from rlprune.training.rows import result_row
from rlprune.training.setup import TrialSetup, setup_trial
from tests.physical import Sequential, gated

INFINITE = float("inf")
PAIR = Pair(0.5, 1.7)


def passes(confidence: list[float], macs: list[float], **changes: Any) -> Passes:
    """Passes over as many images as there are confidences, through three layers."""
    count = len(confidence)
    values: dict[str, Any] = {
        "losses": torch.zeros(count, dtype=torch.float64),
        "hits": torch.zeros(count, 3, dtype=torch.bool),
        "confidence": torch.tensor(confidence, dtype=torch.float64),
        "macs": torch.tensor(macs, dtype=torch.float64),
        "computed": torch.zeros(count, 3, dtype=torch.float64),
        "stored": torch.zeros(3, dtype=torch.float64),
        "parameters": 0,
        "storage_bytes": 0,
    }
    return Passes(**(values | changes))


# --- threshold ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [
        (25.0, 0.9),  # 4 x 10 + 2 x 30 = 4 x 25: the two least confident are sent on
        (24.9, 0.6),
        (17.5, 0.6),
        (17.4, 0.4),  # not one is affordable: nothing is below the least confidence
        (9.0, 0.4),  # not even the small network
        (39.9, 0.99),
        (40.0, INFINITE),
        (INFINITE, INFINITE),
    ],
)
def test_the_threshold_by_hand(budget: float, threshold: float) -> None:
    small, large = passes([0.9, 0.4, 0.6, 0.99], [10.0] * 4), passes([1.0] * 4, [30.0] * 4)
    assert cascade.confidence_threshold(small, large, budget) == threshold
    mean = float(cascade.cascaded(small, large, threshold).macs.mean())
    assert mean <= budget or threshold == 0.4
    assert mean > budget - 30.0 / 4 or threshold == INFINITE


def test_unequal_costs_are_added_in_the_order_of_confidence() -> None:
    small = passes([0.7, 0.5, 0.6], [10.0, 20.0, 30.0])
    large = passes([1.0] * 3, [100.0, 50.0, 40.0])
    for total, sent in ((60, 0), (109.9, 0), (110, 1), (149.9, 1), (150, 2), (249.9, 2), (250, 3)):
        threshold = cascade.confidence_threshold(small, large, total / 3)
        assert int((small.confidence < threshold).sum()) == sent
        spent = float(cascade.cascaded(small, large, threshold).macs.sum())
        assert spent == (60, 110, 150, 250)[sent]


def test_images_of_equal_confidence_are_sent_on_together_or_not_at_all() -> None:
    small, large = passes([0.5, 0.9, 0.5, 0.3], [10.0] * 4), passes([1.0] * 4, [20.0] * 4)
    found = [
        cascade.confidence_threshold(small, large, total / 4) for total in (60, 80, 99, 100, 120)
    ]
    # one, one (of two equals), one, all three, all four
    assert found == [0.5, 0.5, 0.5, 0.9, INFINITE]


# --- both networks together -----------------------------------------------------------------


def test_the_last_network_that_ran_answers_and_both_are_paid_for() -> None:
    hits = torch.tensor([[True, False, False], [False, True, False]])
    small = passes(
        [0.4, 0.8],
        [10.0, 12.0],
        losses=torch.tensor([2.0, 0.5], dtype=torch.float64),
        hits=hits,
        computed=torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.float64),
        stored=torch.tensor([4.0, 9.0, 4.0], dtype=torch.float64),
        parameters=100,
        storage_bytes=404,
    )
    large = passes(
        [0.99, 0.98],
        [50.0, 60.0],
        losses=torch.tensor([1.0, 0.25], dtype=torch.float64),
        hits=~hits,
        computed=torch.tensor([[7.0, 8.0, 9.0]] * 2, dtype=torch.float64),
        stored=torch.tensor([8.0, 8.0, 8.0], dtype=torch.float64),
        parameters=1000,
        storage_bytes=4004,
    )
    both = cascade.cascaded(small, large, 0.8)  # 0.8 itself is not below 0.8
    assert both.macs.tolist() == [60.0, 12.0]
    assert both.losses.tolist() == [1.0, 0.5]
    assert both.hits.tolist() == [[False, True, True], [False, True, False]]
    assert both.confidence.tolist() == [0.99, 0.8]
    assert both.computed.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert both.stored.tolist() == [8, 9, 8]
    assert (both.parameters, both.storage_bytes) == (1100, 4408)
    result = both.result(classes=11)
    assert (result.accuracy, result.accuracy_top5, result.loss) == (0.0, 1.0, 0.75)
    assert both.result(classes=10).accuracy_top5 is None


# --- the two networks -----------------------------------------------------------------------


class Trial:
    """Three layers of 10, 16 and 12 channels; what a trial would do with them."""

    def __init__(self, **budgets: Any) -> None:
        config = config_from_dict(
            {"budgets": {"storage_max": None, **budgets}, "agents": {"hidden": 2}}
        )
        self.network = gated(Sequential([10, 16, 12]), seed=0)
        self.setup = TrialSetup.of(config, self.network.channels)

    @torch.no_grad()
    def run(self, rate: float, large: bool, pair: Pair = PAIR) -> PruningGate:
        part = cascade.members(self.setup, pair)[large]
        budgets = part.book.episodes([self.setup.book.point(rate)] * 8)
        gate = part.gate(self.network, budgets)
        torch.manual_seed(1)
        self.network(torch.randn(8, *self.setup.graph.input_shape), gate)
        assert isinstance(gate, PruningGate)
        return gate


def macs(a: int, b: int, c: int) -> int:
    """Convolutions and linear layer, then predictors: all 10, 16 and 12 rows are computed."""
    return 25 * 9 * 2 * a + 9 * 9 * a * b + 9 * 9 * b * c + 3 * c + 2 * 10 + a * 16 + b * 12


def test_sizes_and_costs_of_both_networks_by_hand() -> None:
    """A mean budget of what s = 0.5 costs: the numbers are 0.25 and 0.85."""
    trial = Trial(compute_max=None, compute_mean=macs(5, 8, 6))
    small, large = trial.run(1.0, False), trial.run(1.0, True)
    assert small.computed.tolist() == [[3, 4, 3]] * 8  # ceil(0.25 C)
    assert large.computed.tolist() == [[9, 14, 11]] * 8  # ceil(0.85 C)
    assert small.macs().tolist() == [macs(3, 4, 3)] * 8
    assert large.macs().tolist() == [macs(9, 14, 11)] * 8
    # R_r = 1 stores every channel: filters and predictors, 4 numbers a channel, linear layer
    numbers = 10 * (2 * 10 + 10 * 16 + 16 * 12) + 4 * 38 + 3 * 12 + 3
    for gate in (small, large):
        assert gate.parameters().tolist() == [numbers] * 8
        assert gate.storage_bytes().tolist() == [4 * numbers] * 8


def test_sizes_stay_between_alpha_and_the_whole_network() -> None:
    trial = Trial(compute_max=None, compute_mean=macs(10, 16, 12) * 0.8)
    assert trial.run(1.0, True, Pair(0.5, 2.2)).computed.tolist() == [[10, 16, 12]] * 8
    trial = Trial(compute_max=None, compute_mean=macs(2, 2, 2))
    assert trial.run(1.0, False, Pair(0.01, 2.2)).computed.tolist() == [[1, 2, 2]] * 8


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_both_passes_together_keep_the_cap_on_any_image(rate: float) -> None:
    cap = 20_000
    trial = Trial(compute_max=cap, compute_mean=macs(5, 8, 6), storage_max=0.5)
    both = trial.run(rate, False).macs() + trial.run(rate, True).macs()
    assert both.max() <= cap
    assert both.min() > 0.7 * cap  # not without need
    free = Trial(compute_max=None, compute_mean=macs(5, 8, 6), storage_max=0.5)
    assert (free.run(rate, False).macs() + free.run(rate, True).macs()).max() > cap


def test_each_network_deletes_what_uniform_deletes_or_less() -> None:
    trial = Trial(compute_max=None, compute_mean=macs(5, 8, 6), storage_max=0.5)
    uniform = methods.uniform(trial.setup)
    budgets = uniform.book.episodes([trial.setup.book.point(0.25)])
    dial = float(budgets.storage_dial)
    assert 0.5 <= dial < 0.6
    plan = uniform.gate(trial.network, budgets).plan
    assert trial.run(0.25, False).stored[0].tolist() == plan.stored[0].tolist()
    large = cascade.members(trial.setup, PAIR)[1].told(budgets)
    assert float(large.storage_dial) == pytest.approx(0.85)
    assert (trial.run(0.25, True).stored >= trial.run(0.25, True).computed).all()


def test_mixed_budgets_are_told_row_by_row() -> None:
    trial = Trial(compute_max=0.9, compute_mean=0.5, train_range=[0.3, 0.7])
    small, large = cascade.members(trial.setup, PAIR)
    points = [trial.setup.book.point(rate, s) for rate, s in ((1.0, 0.7), (0.5, 0.3), (1.0, 0.7))]
    for part in (small, large):
        together = part.told(part.book.episodes(points)).rows()
        alone = [part.told(part.book.episodes([point])).rows()[0] for point in points]
        assert torch.equal(together, torch.stack(alone))
        assert not torch.equal(together[0], together[1])


# --- the course of a trial ------------------------------------------------------------------

DIGITS: dict[str, Any] = {
    "data": {"name": "digits"},
    "backbone": {"name": "m_cifarnet", "width": 0.1},
    "agents": {"hidden": 4},
    "budgets": {"storage_max": 0.5, "compute_max": None, "compute_mean": 0.6},
    "training": {
        "pretrain_epochs": 2,
        "runtime_importance_epochs": 1,
        "static_importance_epochs": 1,
        "rounds": 2,
        "updates_per_round": 0,
        "finetune_epochs": 1,
        "batch_size": 32,
    },
    "evaluation": {
        "tradeoff_rates": [1.0, 0.5, 0.0],
        "batchnorm_images": 96,
        "baselines": ["cascade"],
    },
    "resources": {"cpus": 1},
}


class Untrained:
    """Agents as they are built: no cascade depends on them."""

    def __init__(self, program: TrialProgram) -> None:
        torch.manual_seed(0)
        graph, config = program.setup.graph, program.config.agents
        self._agents = (RuntimeAgent(graph, config), StaticAgent(config))

    def train_agents(self, updates: int) -> None:
        return None

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        return self._agents


class StopsAt(Reporter):
    """Interrupts after some steps, counted over everything."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = steps, 0
        self.stopped: list[str] = []

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        self.count += 1
        if self.count in self.steps:
            self.stopped.append(name)
            raise Interrupted


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    images = load_image_set(config_from_dict(DIGITS).data, 0)
    counts = {"train": 96, "validation": 75, "test": 75}
    few = {name: getattr(images, name).take(range(count)) for name, count in counts.items()}
    return dataclasses.replace(images, **few)


def program_of(digits: ImageSet, reporter: Reporter | None = None) -> TrialProgram:
    config = config_from_dict(copy.deepcopy(DIGITS))
    return TrialProgram(setup_trial(config, digits), digits, "cpu", reporter or Reporter())


@dataclasses.dataclass
class Course:
    """A trial that went through: its end, what was measured, its state before the cascade."""

    program: TrialProgram
    learned: list[Measurement]
    cascade: list[Measurement]
    before: bytes


def saved(program: TrialProgram) -> bytes:
    file = io.BytesIO()
    torch.save(program.state_dict(), file)
    return file.getvalue()


def restored(digits: ImageSet, state: bytes, reporter: Reporter) -> TrialProgram:
    program = program_of(digits, reporter)
    program.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    return program


@pytest.fixture(scope="module")
def calm(digits: ImageSet) -> Course:
    program = program_of(digits)
    agents, found, before = Untrained(program), list[Measurement](), b""
    while not program.finished:
        unit = program.units[program.position]
        if (unit.phase, unit.index) == (SMALL, 0):
            before = saved(program)
        found += program.advance(agents)
    learned, pair = ([m for m in found if m.method == name] for name in ("learned", LARGE))
    return Course(program, learned, pair, before)


def test_two_networks_are_trained_and_then_measured() -> None:
    config = config_from_dict(DIGITS)
    units = [(unit.phase, unit.kind, unit.index, unit.count) for unit in plan_units(config)]
    assert units[-5:] == [
        (SMALL, "train", 0, 2),
        (SMALL, "train", 1, 2),
        (LARGE, "train", 0, 2),
        (LARGE, "train", 1, 2),
        (LARGE, "measure", 0, 1),
    ]
    # 100 images are 3 steps of 32 an epoch, one epoch a round
    images = training_images(config, 100)
    assert images[SMALL] == images[LARGE] == images["alternate"] == 2 * 96


def test_all_effort_is_reported(calm: Course, digits: ImageSet) -> None:
    program = calm.program
    planned = training_images(program.config, len(digits.train))
    assert program.counters.cnn_images == planned
    learned = result_row(program, calm.learned[0], "test", None)
    row = result_row(program, calm.cascade[0], "test", None)
    assert row.method == "cascade" and row.tradeoff_rate == 1.0
    assert row.image_dependent_ratio is None
    assert row.finetune_images == 2 * learned.finetune_images == 2 * 2 * 96
    assert row.training_images - learned.training_images == learned.finetune_images
    seconds = program.counters.seconds
    assert row.seconds_finetune == pytest.approx(seconds[SMALL] + seconds[LARGE])


def test_costs_and_bytes_of_a_measured_cascade(calm: Course) -> None:
    program, point = calm.program, calm.cascade[0]
    # R_r = 0 has no runtime part
    assert [m.point.tradeoff_rate for m in calm.cascade] == [1.0, 0.5]
    assert program.choices.cascade_pair in CANDIDATES
    # every image costs one pass or two, and one more large pass would have been too many
    least, most = point.validation.macs.unique().tolist()
    assert point.test.macs.unique().tolist() == [least, most]
    budget, images = point.point.compute_mean, len(point.validation.macs)
    assert budget is not None
    spent = float(point.validation.macs.sum())
    assert spent <= images * budget < spent + (most - least)
    # R_r = 1 deletes nothing: two whole networks with predictors
    costs = methods.uniform(program.setup).rules.costs
    assert point.test.storage_bytes == 2 * costs.dense_bytes()
    assert point.test.parameters == 2 * int(costs.parameters().total(costs.channels[None]))
    assert not point.budgets_met  # for the bytes, though the mean holds
    assert (point.test.computed <= costs.channels).all()
    assert (point.test.stored <= costs.channels).all()


def test_the_two_networks_are_different_ones(calm: Course) -> None:
    small, large = calm.program.snapshots[SMALL], calm.program.network.state_dict()
    weights = [name for name in small if name.endswith("conv.weight")]
    assert weights and not any(torch.equal(small[name], large[name]) for name in weights)


def test_the_pair_is_the_most_accurate_of_all_on_validation(calm: Course, digits: ImageSet) -> None:
    """Against measuring every candidate by itself."""
    program = program_of(digits)
    start = calm.program.snapshots["importance"]
    points = [program.setup.book.point(rate) for rate in (1.0, 0.5)]
    scores = {}
    for pair in CANDIDATES:
        parts = cascade.members(program.setup, pair)
        measured = [
            cascade.measure(program.evaluator, program.network, (start, start), parts, point)
            for point in points
        ]
        kept = [m.validation.macs.mean() <= 1.01 * m.point.compute_mean for m in measured]
        scores[pair] = (sum(kept), sum(m.validation.accuracy for m in measured) / 2)
    assert len(set(scores.values())) > 1
    assert calm.program.choices.cascade_pair == max(CANDIDATES, key=lambda pair: scores[pair])


def test_interrupted_anywhere_it_ends_the_same(calm: Course, digits: ImageSet) -> None:
    """Stopped, saved, and restored into a new program each time."""
    # choosing begins anew: 9 candidates from 5 on; then 6 steps from 14 and 6 from 20 on
    reporter = StopsAt(4, 16, 23)
    program, agents = restored(digits, calm.before, reporter), Untrained(calm.program)
    found: list[Measurement] = []
    while not program.finished:
        try:
            found += program.advance(agents)
        except Interrupted:
            program = restored(digits, saved(program), reporter)
    assert reporter.stopped == ["cascade candidates", SMALL, LARGE]
    assert program.choices.cascade_pair == calm.program.choices.cascade_pair
    assert program.counters.cnn_images == calm.program.counters.cnn_images
    for one, other in zip(found, calm.cascade, strict=True):
        assert torch.equal(one.test.losses, other.test.losses)
        assert torch.equal(one.test.macs, other.test.macs)


def test_a_second_network_is_part_of_the_memory_estimate(digits: ImageSet) -> None:
    facts = ImageFacts.of(digits)
    needed = {}
    for baselines in ([], ["cascade"]):
        values = {**DIGITS, "evaluation": {"baselines": baselines}}
        setup = setup_trial(config_from_dict(values), digits)
        network = NetworkFacts.of(setup.config.backbone, facts)
        needed[len(baselines)] = memory_estimate(setup, network, facts, on_gpu=False).weights
    assert needed[1] - needed[0] == setup.costs.dense_bytes()
