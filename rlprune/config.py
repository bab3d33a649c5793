"""The configuration of a trial: frozen dataclasses are the truth, YAML overrides them.

Unknown keys, wrong types and values out of range are all reported at once, each with
field, rule, value and remedy, before any work starts. Pydantic's dataclasses do the
checking; they are ordinary frozen dataclasses otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rlprune.config_methods import BaselineName as BaselineName  # re-exported
from rlprune.config_methods import EvaluationConfig as EvaluationConfig
from rlprune.config_methods import MethodConfig as MethodConfig
from rlprune.config_reading import (
    STRICT,
    AtLeastOne,
    Count,
    Fraction,
    Positive,
    apply_override,
    problems_of,
    read_mapping,
)
from rlprune.config_rules import budget_problems, cross_problems
from rlprune.errors import ConfigError, Problem

DatasetName = Literal["digits", "fashion_mnist", "cifar10", "imagefolder", "parquet"]
BackboneName = Literal[
    "m_cifarnet", "resnet20", "resnet32", "resnet56", "vgg16_bn", "resnet18", "mobilenet_v2"
]
Budget = float | str
"""A budget: see :class:`BudgetConfig`."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        name: the image set.
        root: folder where its files lie (not used by ``digits``); torchvision's sets are
            downloaded there if absent and ``download`` is true.
        download: whether missing torchvision files may be fetched.
        image_size: side in pixels to which ``imagefolder`` and ``parquet`` images are
            resized (the other sets keep their own size); None keeps the first image's.
        validation_fraction: part of the training images held out, per class.
        augment: "auto" uses the set's usual augmentation, "none" uses none.
        max_train_images: use only so many training images (stratified), None = all.
        streaming: leave the images of ``imagefolder`` and ``parquet`` in their files and decode
            them whenever they are used, through Ray Data for the epochs of training: for sets
            larger than the memory. Slower where they would fit.
    """

    name: DatasetName = "digits"
    root: str | None = None
    download: bool = True
    image_size: AtLeastOne | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    augment: Literal["auto", "none"] = "auto"
    max_train_images: AtLeastOne | None = None
    streaming: bool = False


@dataclass(frozen=True, config=STRICT)
class BackboneConfig:
    """Which network.

    Attributes:
        name: a built-in backbone; ignored where ``factory`` is given.
        width: multiplies every layer's channels (``m_cifarnet``, CIFAR ResNets, VGG).
        factory: "package.module:function" that returns an ``nn.Module``; called with
            ``num_classes`` and ``in_channels`` where it accepts them.
        weights: path of a state dict, read with ``weights_only=True``.
    """

    name: BackboneName = "m_cifarnet"
    width: Positive = 1.0
    factory: str | None = None
    weights: str | None = None


@dataclass(frozen=True, config=STRICT)
class PruningConfig:
    """How channels are ranked and masked (paper Sec. 3).

    Attributes:
        alpha: least keep ratio of a layer.
        predictor_rank: largest rank of the runtime importance predictors, which makes them
            small; None: whole matrices (paper).
        width_affine: let each channel's scale and shift follow the share of the layer's
            inputs that are pruned for the image (two numbers per channel), so that one
            network suits many widths. Deviation: not in the paper.
        boosted: let u = u_r u_s, u_r cut at zero, scale a channel's shift as well, so that the
            whole channel follows its importance: keep * u * (norm(conv(x)) + shift), as in
            Gao et al. 2019. Deviation: the paper scales the normalised part alone.
        tradeoff: "permanent" (default) makes the storage claim true by construction;
            "paper" is the paper's rule, Eq. 4-5.
    """

    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    predictor_rank: AtLeastOne | None = None
    width_affine: bool = False
    boosted: bool = False
    tradeoff: Literal["permanent", "paper"] = "permanent"


@dataclass(frozen=True, config=STRICT)
class BudgetConfig:
    """What the pruned network may cost. Each budget is optional, each has one meaning.

    A value is one of:

    - a number s in (0, 1]: the cost of the complete gated network in which every layer
      keeps s of its channels (s = 0.5 is about a quarter of the MACs).
      For storage the share of channels that the tradeoff rate R_r leaves to the static
      agent counts: permanently kept are 1 - (1 - R_r)(1 - s) of the channels;
    - a percentage such as "40%": that part of the dense network's cost;
    - an absolute amount: a number above 1, or text such as "300KB", "1.5MiB", "40M".

    Attributes:
        storage_max: bytes of stored weights (predictors and agent included): a number s up to
            1 (every layer keeps s of its channels), "40%" of the dense network's, or an amount
            such as "300KB".
        compute_max: multiply-accumulates that any single image may cost: a number s up to 1,
            "40%", or an amount such as "40M".
        compute_mean: multiply-accumulates per image on average over images; likewise.
        train_range: (low, high) numbers s; in training each episode draws s from it and
            uses it for every budget above that is a number s. None: no variation.
        rule: "projected" meets the caps by construction; "soft" only penalises (paper).
    """

    storage_max: Budget | None = 0.5
    compute_max: Budget | None = 0.5
    compute_mean: Budget | None = None
    train_range: tuple[Fraction, Fraction] | None = None
    rule: Literal["projected", "soft"] = "projected"


@dataclass(frozen=True, config=STRICT)
class AgentConfig:
    """The two agents and PPO.

    Attributes:
        hidden: width of encoder and recurrent state (the paper: 128). Deviation: 32, the
            agent ships with the model and its bytes count.
        action: the runtime agent's action is the keep ratio ("absolute", paper) or its
            change from layer to layer ("change": noise accumulates over the layers, which
            explores "spend more on this image"). "auto": "change" where ``compute_mean``
            is set, else "absolute".
        learning_rate: Adam step of both agents at the first update; falls linearly to a
            tenth over the planned updates (the paper: 1e-6, constant).
        initial_log_std: initial bias of the log-std head (the paper: -4).
        min_log_std: log-std is not let below a bound that falls linearly, over the planned
            updates, from initial_log_std to this.
        epochs: PPO passes over each update's rollouts.
        gamma, gae_lambda, clip, value_coefficient, entropy_coefficient, gradient_clip: PPO.
        runtime_mean_penalty, static_mean_penalty: weights of the penalty that pulls the
            policy's mean back into [alpha, 1].
        samples_per_image: rollouts of the same image in one update; their mean reward,
            the rollout's own left out, is subtracted as a baseline (1: no baseline).
        loss_average_decay: per update, of the moving average of the loss in the reward; slow,
            so that the reward shows progress within and across rounds.
    """

    hidden: AtLeastOne = 32
    action: Literal["auto", "absolute", "change"] = "auto"
    learning_rate: Positive = 3e-3
    initial_log_std: float = -2.5
    min_log_std: float = -3.5
    epochs: AtLeastOne = 2
    gamma: Fraction = 0.999
    gae_lambda: Fraction = 0.95
    clip: Positive = 0.2
    value_coefficient: Annotated[float, Field(ge=0.0)] = 0.5
    entropy_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    gradient_clip: Positive = 0.5
    runtime_mean_penalty: Annotated[float, Field(ge=0.0)] = 100.0
    static_mean_penalty: Annotated[float, Field(ge=0.0)] = 0.001
    samples_per_image: AtLeastOne = 4
    loss_average_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """Where and how much experience is collected.

    Attributes:
        num_env_runners: remote rollout workers; 0 rolls out in the trial's own process.
        rollouts_per_update: episodes of one PPO update, over all workers.
        threads_per_runner: torch threads of each remote worker.
    """

    num_env_runners: Count = 0
    rollouts_per_update: AtLeastOne = 256
    threads_per_runner: AtLeastOne = 1


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """The phases (paper Sec. 4); any of them can be set to zero.

    Attributes:
        pretrain_epochs: dense backbone (0: random or ``backbone.weights``).
        runtime_importance_epochs: backbone and runtime predictors, u_s fixed.
        static_importance_epochs: u_s freed as well.
        ranked_start: let the importances rank the channels by what they contribute before
            anything is trained (:func:`rlprune.pruning.ranking.rank_importances`). Deviation:
            in the paper they begin without any order.
        importance_ratios: what is pruned while the importances are trained: "varied", random
            keep ratios per image and layer (the agents then explore on a network that works
            at any ratio); "budget", the uniform ratio of the budgets (less is left to
            fine-tune); "none" (paper).
        rounds: alternations of agent training and fine-tuning.
        updates_per_round: PPO updates in each.
        finetune_epochs: CNN epochs in each (fractions allowed).
        finetune_first: fine-tune first and train the agents then, in every round. The network
            of the first round is fine-tuned at the budget's own ratio, and the agents end on
            the network that ships. Deviation: the paper trains the agents first.
        keep_better: keep a round's agents only where their reward on the validation images
            is higher, by more than two standard errors, than that of the agents before. Costs
            two validation passes per round and point. Deviation: not in the paper.
        batch_size: images per CNN step.
        pretrain_learning_rate, finetune_learning_rate: Adam steps, cosine to zero over
            the phase; fine-tuning's schedule spans all rounds. While importances are trained
            fine-tuning's rate stays as it is.
        predictor_rate: learning rate of the runtime predictors' matrices, as a share of the
            others'. At the full rate the channels of an image change faster than the
            filters can follow. FBS, RNP and all who come with predictors of their own: 1.
        importance_penalty: weight of the L1 norm of u_r, summed over the layers, in the loss
            wherever the network trains under the agents' or under uniform gates (Gao et al.
            2019; ``methods.fbs_penalty`` is that of FBS). Deviation: not in the paper.
        gradient_clip: largest norm of the CNN's gradient.
        label_smoothing: of the cross-entropy in all CNN phases.
        distillation: after pretraining, the weight w of the pretrained network's answers:
            (1 - w) CE(labels) + w T^2 KL(pretrained || pruned), for every method alike.
            Costs one dense forward pass per step. 0: labels only (paper).
        distillation_temperature: T, which softens both networks' answers.
    """

    pretrain_epochs: Count = 10
    runtime_importance_epochs: Count = 2
    static_importance_epochs: Count = 1
    ranked_start: bool = True
    importance_ratios: Literal["varied", "budget", "none"] = "varied"
    rounds: Count = 4
    updates_per_round: Count = 25
    finetune_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    finetune_first: bool = False
    keep_better: bool = False
    batch_size: AtLeastOne = 128
    pretrain_learning_rate: Positive = 2e-3
    finetune_learning_rate: Positive = 1e-3
    predictor_rate: Positive = 0.1
    importance_penalty: Annotated[float, Field(ge=0.0)] = 0.0
    gradient_clip: Positive = 40.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    distillation: Fraction = 0.0
    distillation_temperature: Positive = 2.0

    @property
    def planned_updates(self) -> int:
        """PPO updates of the whole trial."""
        return self.rounds * self.updates_per_round


@dataclass(frozen=True, config=STRICT)
class ResourceConfig:
    """What the trial runs on.

    Attributes:
        device: of CNN training and of the learner; "auto" uses a GPU where there is one.
        cpus: torch threads of the trial's own process; None: all cores.
        cnn_workers: processes that train the network together, each on its share of every
            batch, so that results are the same up to rounding (another number is possible on
            resuming). 1: the trial's own process. With more, each takes ``cpus`` CPUs (of a
            machine that they share without ``cpus``, as many threads as there are cores
            for it) or a GPU of its own, besides the trial's own process, which measures.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus: AtLeastOne | None = None
    cnn_workers: AtLeastOne = 1


@dataclass(frozen=True, config=STRICT)
class TrialConfig:
    """Everything that determines a trial. See the parts for the other fields.

    Attributes:
        name: of the run; in a sweep, of the trial.
        seed: of everything that is drawn: initial weights, splits, orders of images, agents,
            baselines. Equal seeds and equal numbers of workers give equal results.
    """

    name: str = "trial"
    seed: Count = 0
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    pruning: PruningConfig = PruningConfig()
    budgets: BudgetConfig = BudgetConfig()
    agents: AgentConfig = AgentConfig()
    rollouts: RolloutConfig = RolloutConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    methods: MethodConfig = MethodConfig()
    resources: ResourceConfig = ResourceConfig()


def config_from_dict(values: Mapping[str, Any]) -> TrialConfig:
    """Builds a checked configuration.

    Args:
        values: nested mapping in the shape of :class:`TrialConfig`; what is absent keeps
            its default.

    Raises:
        ConfigError: listing every problem found.
    """
    budgets = values.get("budgets")
    problems = budget_problems(budgets) if isinstance(budgets, Mapping) else []
    problems += cross_problems(values, TrialConfig())
    try:
        config = TypeAdapter(TrialConfig).validate_python(dict(values))
    except ValidationError as error:
        remedy = "`rlprune settings` explains every setting."
        raise ConfigError([*problems_of(error, TrialConfig, remedy), *problems]) from None
    if problems:
        raise ConfigError(problems)
    return config


def config_to_dict(config: TrialConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries (JSON- and YAML-safe)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def config_hash(config: TrialConfig) -> str:
    """Twelve hexadecimal digits that are equal exactly for equal configurations."""
    text = json.dumps(config_to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrialConfig:
    """Reads a YAML file and applies ``a.b=value`` overrides to it.

    Raises:
        ConfigError: the file is missing or no YAML mapping, describes a sweep, or any
            setting is invalid; every problem is listed.
    """
    values = read_mapping(path)
    if "space" in values:
        rule = "must describe one trial, not a sweep"
        remedy = f"Start it with `rlprune sweep {path}`."
        raise ConfigError([Problem("CONFIG", rule, str(path), remedy)])
    problems = [problem for item in overrides if (problem := apply_override(values, item))]
    try:
        config = config_from_dict(values)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return config
