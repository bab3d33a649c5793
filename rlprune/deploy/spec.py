"""What a shipped model consists of, beside its numbers: read from and written to JSON.

Nothing in here is code: a program is a list of calls of operations that
:mod:`rlprune.deploy.operations` knows by name, with plain numbers as arguments.

Legend: T prunable layers, C channels of a layer before and S after deletion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rlprune.deploy.checks import Checks

SCHEMA = 4
"""Version of the file format; files of others are refused (1: other anchors at 0 < R_r < 1)."""

_MOST_LAYERS = 1 << 10
_check = Checks("export it again")


@dataclass(frozen=True)
class Run:
    """Consecutive input channels of a layer.

    Attributes:
        layer: the prunable layer that provides them, None where all are always there.
        channels: how many there were before deletion.
    """

    layer: int | None
    channels: int


@dataclass(frozen=True)
class LayerSpec:
    """One prunable convolution.

    Attributes:
        name: of the convolution in the original network.
        channels, stored: C and S.
        inputs: who provides the input channels, in order.
        kernel, stride, padding, dilation: (height, width).
        out_size: (height, width) at the model's input size.
        static_votes: of the stored channels, how many of least static importance the
            static agent votes against.
        rank: of the importance predictor; 0: a whole matrix; None: no predictor.
        width_affine: whether scale and shift follow the share of pruned inputs.
        boosted: whether u, with u_r cut at zero, scales the shift as well.
        norm: whether a BatchNorm was folded into the filters (its mean is stored).
    """

    name: str
    channels: int
    stored: int
    inputs: tuple[Run, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    out_size: tuple[int, int]
    static_votes: int
    rank: int | None
    width_affine: bool
    boosted: bool
    norm: bool

    @property
    def in_channels(self) -> int:
        """Input channels before deletion."""
        return sum(run.channels for run in self.inputs)


@dataclass(frozen=True)
class CostSpec:
    """MACs of an image: constant + linear . n + n^T pairwise n for computed channels n [T].

    Predictors and agent are included; what is stored is fixed in it.

    Attributes:
        constant, linear, pairwise: coefficients; pairwise as (row, column, value).
        full_constant, full_linear: the same where nothing is deleted, which is what a
            budget s means (``BudgetConfig``).
        dense_macs, dense_bytes: of the original network.
    """

    constant: float
    linear: tuple[float, ...]
    pairwise: tuple[tuple[int, int, float], ...]
    full_constant: float
    full_linear: tuple[float, ...]
    dense_macs: float
    dense_bytes: float


@dataclass(frozen=True)
class PolicySpec:
    """Who decides at run time how many channels an image computes.

    Attributes:
        kind: "agent", "constant" (the budget's own ratio everywhere) or "none" (all that is
            stored is computed).
        action: what the agent's mean is added to: "absolute" the budget's ratio, "change"
            the ratio of the layer before.
        hidden: width of the agent's recurrent state.
        projected: whether ``compute_max`` is kept by construction.
    """

    kind: str
    action: str = "absolute"
    hidden: int = 0
    projected: bool = True


@dataclass(frozen=True)
class BudgetSpec:
    """Budgets that the model was measured at.

    Attributes:
        tradeoff_rate: R_r.
        tradeoff: "permanent" or "paper".
        alpha: least keep ratio.
        compute_max: most MACs of any image, None: no cap.
        compute_mean: most MACs on average, None: no such budget.
        compute_dial, storage_dial, cap_dial: the budgets as numbers s, as the agent was told.
    """

    tradeoff_rate: float
    tradeoff: str
    alpha: float
    compute_max: float | None
    compute_mean: float | None
    compute_dial: float
    storage_dial: float
    cap_dial: float


@dataclass(frozen=True)
class Node:
    """One call of the program.

    Attributes:
        kind: "input", "gated", "follower", "conv", "linear", "affine", "expand", "call" or
            "output".
        target: a layer's index (gated), a tensor prefix (follower, conv, linear, affine), the
            operation's name (call), else "".
        args: values: numbers, strings, lists, None, or ``{"r": k}`` for the value of node k.
        kwargs: likewise by name.
    """

    kind: str
    target: int | str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its numbers.

    Attributes:
        input_shape: (C, H, W).
        mean, std: of each input channel, for pixels in [0, 1].
        resize: how image files were brought to ``input_shape``: one of RESIZES.
        classes: names in label order.
        layers, program, costs, policy, budget: see the classes.
        dtype: of the stored weights: "float32", "float16", "bfloat16" or "int8".
        measured: what the run measured, for example ``test_accuracy`` and ``macs_mean``.
        origin: where it comes from: configuration hash, backbone, data, version.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    classes: tuple[str, ...]
    layers: tuple[LayerSpec, ...]
    program: tuple[Node, ...]
    costs: CostSpec
    policy: PolicySpec
    budget: BudgetSpec
    dtype: str
    measured: Mapping[str, Any]
    origin: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values; nodes and layers as lists, since names would fill the file."""
        plain = asdict(self)
        plain["layers"] = [list(layer.values()) for layer in plain["layers"]]
        for layer in plain["layers"]:
            layer[3] = [[run["layer"], run["channels"]] for run in layer[3]]
        plain["program"] = [[n.kind, n.target, list(n.args), dict(n.kwargs)] for n in self.program]
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> ModelSpec:
        """Checks everything that is not a tensor.

        Raises:
            ArtifactError: names the first field that is wrong.
        """
        given = _check.mapping(plain, "model", {field.name for field in fields(cls)})
        listed = _check.items(given["layers"], "layers")
        _check.require(len(listed) <= _MOST_LAYERS, "layers", f"at most {_MOST_LAYERS} layers")
        layers = tuple(_layer(values, index) for index, values in enumerate(listed))
        spec = cls(
            input_shape=_check.counts(given["input_shape"], "input_shape", 3),
            mean=_check.numbers(given["mean"], "mean"),
            std=_check.numbers(given["std"], "std"),
            resize=_check.one_of(given["resize"], "resize", RESIZES),
            classes=tuple(
                _check.text(c, "classes") for c in _check.items(given["classes"], "classes")
            ),
            layers=layers,
            program=tuple(_node(values) for values in _check.items(given["program"], "program")),
            costs=_costs(given["costs"], len(layers)),
            policy=_policy(given["policy"]),
            budget=_budget(given["budget"]),
            dtype=_check.one_of(given["dtype"], "dtype", DTYPES),
            measured=_check.mapping(given["measured"], "measured"),
            origin=_check.mapping(given["origin"], "origin"),
        )
        _check.require(
            len(spec.mean) == len(spec.std) == spec.input_shape[0], "mean", "one per channel"
        )
        _check.require(all(value >= 1e-6 for value in spec.std), "std", "positive")
        return spec


RESIZES = ("stretch", "crop")
"""Sides scaled each by itself; the shorter side to 8/7 of the model's and the centre cut out."""
DTYPES = ("float32", "float16", "bfloat16", "int8")
KINDS = ("input", "gated", "follower", "conv", "linear", "affine", "expand", "call", "output")


def _layer(values: Any, index: int) -> LayerSpec:
    where = f"layers[{index}]"
    given = _check.items(values, where, len(fields(LayerSpec)))
    name, channels, stored, inputs, kernel, stride, padding, dilation, size, votes, *rest = given
    rank, affine, boosted, norm = rest
    runs = []
    for run in _check.items(inputs, f"{where}.inputs"):
        source, width = _check.items(run, f"{where}.inputs", 2)
        earlier = source is None or _check.count(source, f"{where}.inputs") < index
        _check.require(earlier, f"{where}.inputs", "earlier layers")
        runs.append(Run(source, _check.count(width, f"{where}.inputs", 1)))
    layer = LayerSpec(
        name=_check.text(name, where),
        channels=_check.count(channels, f"{where}.channels", 1),
        stored=_check.count(stored, f"{where}.stored", 1),
        inputs=tuple(runs),
        kernel=_check.counts(kernel, f"{where}.kernel", 2),
        stride=_check.counts(stride, f"{where}.stride", 2),
        padding=_check.counts(padding, f"{where}.padding", 2, 0),
        dilation=_check.counts(dilation, f"{where}.dilation", 2),
        out_size=_check.counts(size, f"{where}.out_size", 2),
        static_votes=_check.count(votes, f"{where}.static_votes"),
        rank=None if rank is None else _check.count(rank, f"{where}.rank"),
        width_affine=_check.boolean(affine, f"{where}.width_affine"),
        boosted=_check.boolean(boosted, f"{where}.boosted"),
        norm=_check.boolean(norm, f"{where}.norm"),
    )
    _check.require(layer.stored <= layer.channels, where, "no more channels stored than there were")
    _check.require(layer.static_votes <= layer.stored, where, "no more votes than channels")
    _check.require(bool(runs), f"{where}.inputs", "a list of at least one run")
    return layer


def _node(values: Any) -> Node:
    kind, target, args, kwargs = _check.items(values, "program", 4)
    named = isinstance(target, str) or (isinstance(target, int) and not isinstance(target, bool))
    _check.require(named, "program", "calls with a name or an index")
    return Node(
        _check.one_of(kind, "program", KINDS),
        target,
        tuple(_check.items(args, "program")),
        _check.mapping(kwargs, "program"),
    )


def _costs(value: Any, layers: int) -> CostSpec:
    given = _check.mapping(value, "costs", {field.name for field in fields(CostSpec)})
    pairs = []
    for pair in _check.items(given["pairwise"], "costs.pairwise"):
        row, column, amount = _check.items(pair, "costs.pairwise", 3)
        row, column = _check.count(row, "costs.pairwise"), _check.count(column, "costs.pairwise")
        _check.require(row < column < layers, "costs.pairwise", "pairs of layers in order")
        pairs.append((row, column, _check.number(amount, "costs.pairwise")))
    unique = len({pair[:2] for pair in pairs}) == len(pairs)
    _check.require(unique, "costs.pairwise", "one number for each pair")
    return CostSpec(
        constant=_check.number(given["constant"], "costs.constant"),
        linear=_check.numbers(given["linear"], "costs.linear", layers),
        pairwise=tuple(pairs),
        full_constant=_check.number(given["full_constant"], "costs.full_constant"),
        full_linear=_check.numbers(given["full_linear"], "costs.full_linear", layers),
        dense_macs=_check.number(given["dense_macs"], "costs.dense_macs"),
        dense_bytes=_check.number(given["dense_bytes"], "costs.dense_bytes"),
    )


def _policy(value: Any) -> PolicySpec:
    given = _check.mapping(value, "policy", {field.name for field in fields(PolicySpec)})
    return PolicySpec(
        kind=_check.one_of(given["kind"], "policy.kind", ("agent", "constant", "none")),
        action=_check.one_of(given["action"], "policy.action", ("absolute", "change")),
        hidden=_check.count(given["hidden"], "policy.hidden"),
        projected=_check.boolean(given["projected"], "policy.projected"),
    )


def _budget(value: Any) -> BudgetSpec:
    given = _check.mapping(value, "budget", {field.name for field in fields(BudgetSpec)})
    alpha = _check.between(given["alpha"], "budget.alpha", 1e-9, 1.0)
    # The dial of a mean budget is found by bisection from 0 to 2.
    ranges = {"tradeoff_rate": (0.0, 1.0), "compute_dial": (0.0, 2.0)}
    ranges |= {"storage_dial": (alpha, 1.0), "cap_dial": (alpha, 1.0)}
    numbers = {
        name: _check.between(given[name], f"budget.{name}", *ends) for name, ends in ranges.items()
    }
    return BudgetSpec(
        tradeoff=_check.one_of(given["tradeoff"], "budget.tradeoff", ("permanent", "paper")),
        compute_max=_check.optional(given["compute_max"], "budget.compute_max"),
        compute_mean=_check.optional(given["compute_mean"], "budget.compute_mean"),
        alpha=alpha,
        **numbers,
    )
