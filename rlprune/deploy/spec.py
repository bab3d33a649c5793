"""What a shipped model consists of, beside its numbers: read from and written to JSON.

Nothing in here is code: a program is a list of calls of operations that
:mod:`rlprune.deploy.operations` knows by name, with plain numbers as arguments.

Legend: T prunable layers, C channels of a layer before and S after deletion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from rlprune.errors import ArtifactError

SCHEMA = 1
"""Version of the file format; a file of a later version is refused."""

MOST = 1 << 20
"""No count in a file may be larger: sizes are checked before memory is taken."""
_MOST_LAYERS = 1 << 10
_LARGEST = 2.0**53
"""No amount may be larger: up to here float64 holds every whole number."""


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
        classes: names in label order.
        layers, program, costs, policy, budget: see the classes.
        dtype: of the stored weights: "float32", "float16", "bfloat16" or "int8".
        measured: what the run measured, for example ``test_accuracy`` and ``macs_mean``.
        origin: where it comes from: configuration hash, backbone, data, version.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
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
        given = _mapping(plain, "model", {field.name for field in fields(cls)})
        listed = _list(given["layers"], "layers")
        _require(len(listed) <= _MOST_LAYERS, "layers", f"at most {_MOST_LAYERS} layers")
        layers = tuple(_layer(values, index) for index, values in enumerate(listed))
        spec = cls(
            input_shape=_counts(given["input_shape"], "input_shape", 3),
            mean=_numbers(given["mean"], "mean"),
            std=_numbers(given["std"], "std"),
            classes=tuple(_text(c, "classes") for c in _list(given["classes"], "classes")),
            layers=layers,
            program=tuple(_node(values) for values in _list(given["program"], "program")),
            costs=_costs(given["costs"], len(layers)),
            policy=_policy(given["policy"]),
            budget=_budget(given["budget"]),
            dtype=_one_of(given["dtype"], "dtype", DTYPES),
            measured=_mapping(given["measured"], "measured"),
            origin=_mapping(given["origin"], "origin"),
        )
        _require(len(spec.mean) == len(spec.std) == spec.input_shape[0], "mean", "one per channel")
        _require(all(value >= 1e-6 for value in spec.std), "std", "positive")
        return spec


DTYPES = ("float32", "float16", "bfloat16", "int8")
KINDS = ("input", "gated", "follower", "conv", "linear", "affine", "expand", "call", "output")


# --- checks: each says which field is wrong, and how ----------------------------------------


def _require(holds: bool, field: str, rule: str) -> None:
    if not holds:
        raise ArtifactError(
            f"{field}: must be {rule}. The file is damaged or was edited; export it again."
        )


def _mapping(value: Any, field: str, names: set[str] | None = None) -> dict[str, Any]:
    _require(isinstance(value, dict), field, "an object")
    _require(names is None or set(value) == names, field, f"an object with {sorted(names or ())}")
    checked: dict[str, Any] = value
    return checked


def _list(value: Any, field: str, length: int | None = None) -> list[Any]:
    _require(isinstance(value, list) and len(value) <= MOST, field, "a list")
    _require(length is None or len(value) == length, field, f"a list of {length}")
    checked: list[Any] = value
    return checked


def _text(value: Any, field: str) -> str:
    _require(isinstance(value, str), field, "text")
    return str(value)


def _one_of(value: Any, field: str, allowed: Sequence[str]) -> str:
    _require(isinstance(value, str) and value in allowed, field, f"one of {', '.join(allowed)}")
    return str(value)


def _number(value: Any, field: str) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    _require(plain and abs(value) <= _LARGEST, field, "a finite number")  # neither NaN nor inf
    return float(value)


def _between(value: Any, field: str, least: float, most: float) -> float:
    number = _number(value, field)
    _require(least <= number <= most, field, f"from {least:g} to {most:g}")
    return number


def _numbers(value: Any, field: str, length: int | None = None) -> tuple[float, ...]:
    return tuple(_number(item, field) for item in _list(value, field, length))


def _count(value: Any, field: str, least: int = 0) -> int:
    plain = isinstance(value, int) and not isinstance(value, bool)
    _require(plain and least <= value <= MOST, field, f"a whole number from {least} to {MOST}")
    return int(value)


_Triple = TypeVar("_Triple", bound=tuple[int, ...])


def _counts(value: Any, field: str, length: int, least: int = 1) -> Any:
    return tuple(_count(item, field, least) for item in _list(value, field, length))


def _boolean(value: Any, field: str) -> bool:
    _require(isinstance(value, bool), field, "true or false")
    return bool(value)


def _optional(value: Any, field: str) -> float | None:
    return None if value is None else _number(value, field)


def _layer(values: Any, index: int) -> LayerSpec:
    where = f"layers[{index}]"
    given = _list(values, where, len(fields(LayerSpec)))
    name, channels, stored, inputs, kernel, stride, padding, dilation, size, votes, *rest = given
    rank, affine, norm = rest
    runs = []
    for run in _list(inputs, f"{where}.inputs"):
        source, width = _list(run, f"{where}.inputs", 2)
        earlier = source is None or _count(source, f"{where}.inputs") < index
        _require(earlier, f"{where}.inputs", "earlier layers")
        runs.append(Run(source, _count(width, f"{where}.inputs", 1)))
    layer = LayerSpec(
        name=_text(name, where),
        channels=_count(channels, f"{where}.channels", 1),
        stored=_count(stored, f"{where}.stored", 1),
        inputs=tuple(runs),
        kernel=_counts(kernel, f"{where}.kernel", 2),
        stride=_counts(stride, f"{where}.stride", 2),
        padding=_counts(padding, f"{where}.padding", 2, 0),
        dilation=_counts(dilation, f"{where}.dilation", 2),
        out_size=_counts(size, f"{where}.out_size", 2),
        static_votes=_count(votes, f"{where}.static_votes"),
        rank=None if rank is None else _count(rank, f"{where}.rank"),
        width_affine=_boolean(affine, f"{where}.width_affine"),
        norm=_boolean(norm, f"{where}.norm"),
    )
    _require(layer.stored <= layer.channels, where, "no more channels stored than there were")
    _require(layer.static_votes <= layer.stored, where, "no more votes than channels")
    _require(bool(runs), f"{where}.inputs", "a list of at least one run")
    return layer


def _node(values: Any) -> Node:
    kind, target, args, kwargs = _list(values, "program", 4)
    named = isinstance(target, str) or (isinstance(target, int) and not isinstance(target, bool))
    _require(named, "program", "calls with a name or an index")
    return Node(
        _one_of(kind, "program", KINDS),
        target,
        tuple(_list(args, "program")),
        _mapping(kwargs, "program"),
    )


def _costs(value: Any, layers: int) -> CostSpec:
    given = _mapping(value, "costs", {field.name for field in fields(CostSpec)})
    pairs = []
    for pair in _list(given["pairwise"], "costs.pairwise"):
        row, column, amount = _list(pair, "costs.pairwise", 3)
        row, column = _count(row, "costs.pairwise"), _count(column, "costs.pairwise")
        _require(row < column < layers, "costs.pairwise", "pairs of layers in order")
        pairs.append((row, column, _number(amount, "costs.pairwise")))
    unique = len({pair[:2] for pair in pairs}) == len(pairs)
    _require(unique, "costs.pairwise", "one number for each pair")
    return CostSpec(
        constant=_number(given["constant"], "costs.constant"),
        linear=_numbers(given["linear"], "costs.linear", layers),
        pairwise=tuple(pairs),
        full_constant=_number(given["full_constant"], "costs.full_constant"),
        full_linear=_numbers(given["full_linear"], "costs.full_linear", layers),
        dense_macs=_number(given["dense_macs"], "costs.dense_macs"),
        dense_bytes=_number(given["dense_bytes"], "costs.dense_bytes"),
    )


def _policy(value: Any) -> PolicySpec:
    given = _mapping(value, "policy", {field.name for field in fields(PolicySpec)})
    return PolicySpec(
        kind=_one_of(given["kind"], "policy.kind", ("agent", "constant", "none")),
        action=_one_of(given["action"], "policy.action", ("absolute", "change")),
        hidden=_count(given["hidden"], "policy.hidden"),
        projected=_boolean(given["projected"], "policy.projected"),
    )


def _budget(value: Any) -> BudgetSpec:
    given = _mapping(value, "budget", {field.name for field in fields(BudgetSpec)})
    alpha = _between(given["alpha"], "budget.alpha", 1e-9, 1.0)
    # The dial of a mean budget is found by bisection from 0 to 2.
    ranges = {"tradeoff_rate": (0.0, 1.0), "compute_dial": (0.0, 2.0)}
    ranges |= {"storage_dial": (alpha, 1.0), "cap_dial": (alpha, 1.0)}
    numbers = {
        name: _between(given[name], f"budget.{name}", *ends) for name, ends in ranges.items()
    }
    return BudgetSpec(
        tradeoff=_one_of(given["tradeoff"], "budget.tradeoff", ("permanent", "paper")),
        compute_max=_optional(given["compute_max"], "budget.compute_max"),
        compute_mean=_optional(given["compute_mean"], "budget.compute_mean"),
        alpha=alpha,
        **numbers,
    )
