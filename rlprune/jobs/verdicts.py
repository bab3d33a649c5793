"""From what the nodes tell to what is wrong and what to do about it (no Ray here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlprune.errors import ConfigError
from rlprune.jobs.facts import NodeFacts
from rlprune.sweep.estimate import SweepPlan, TrialEstimate
from rlprune.sweep.plan import check_schedulable

_SHOWN = 3


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's.
        name: what people call it: address, host name.
        resources: "CPU", "GPU", "memory" and "object_store_memory" in bytes.
        facts: what it told; None if it did not answer.
        silence: why not.
    """

    id: str
    name: str
    resources: Mapping[str, float]
    facts: NodeFacts | None
    silence: str = ""


@dataclass(frozen=True)
class Survey:
    """All that was found out.

    Attributes:
        nodes: of the cluster.
        plan: the sweep's trials; None if it cannot be planned.
        plan_problem: why not.
        unseen: names of nodes whose files in the storage others do not see.
        must_authenticate: whether a cluster without tokens is refused.
    """

    nodes: Sequence[Node]
    plan: SweepPlan | None
    plan_problem: str
    unseen: Sequence[str]
    must_authenticate: bool = True


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        what: is checked.
        good: the verdict.
        found: in words.
        remedy: what to do; "" where all is well.
    """

    what: str
    good: bool
    found: str
    remedy: str = ""


def judge(survey: Survey) -> list[Check]:
    """Every check, in the order in which one would mend things."""
    told = [node for node in survey.nodes if node.facts is not None]
    checks = [_answers(survey.nodes), _authentication(told, survey.must_authenticate)]
    checks += [_equal(told, name) for name in ("python", "ray", "torch", "rlprune")]
    checks += [_storage(told, survey.unseen), _data(told), _sweep(survey)]
    if survey.plan is not None:
        checks += [_resources(survey.plan, survey.nodes), _shared_memory(survey.plan, told)]
        if any(trial.gpus > 0 for trial in survey.plan.trials):
            checks.append(_gpu_build(told))
    return checks


def _facts(node: Node) -> NodeFacts:
    if node.facts is None:
        raise TypeError(f"{node.name} told nothing")
    return node.facts


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _per_node(
    what: str, told: Sequence[Node], problem: Callable[[Node], str], good: str, remedy: str
) -> Check:
    """A check that each node passes by itself."""
    bad = [(node.name, text) for node in told if (text := problem(node))]
    if not bad:
        return Check(what, bool(told), good if told else "no node answered")
    names = _listed([name for name, _ in bad])
    return Check(what, False, f"{names}: {bad[0][1]}", remedy)


def _answers(nodes: Sequence[Node]) -> Check:
    silent = [node for node in nodes if node.facts is None]
    if not silent:
        return Check("nodes", bool(nodes), f"{len(nodes)} answer")
    return Check(
        "nodes",
        False,
        f"{_listed([node.name for node in silent])} of {len(nodes)}: {silent[0].silence}",
        "Look at these nodes' logs (`ray logs`); start them again, or remove them.",
    )


def _authentication(told: Sequence[Node], must: bool) -> Check:
    def problem(node: Node) -> str:
        facts = _facts(node)
        if not facts.token_mode:
            return "RAY_AUTH_MODE is not token" if must else ""
        return f"others can read {facts.token_file}" if facts.token_file else ""

    good = "every node asks for the token" if must else "not asked for (--allow-unauthenticated)"
    remedy = (
        "Start every node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, the same file "
        "everywhere, chmod 600."
    )
    return _per_node("authentication", told, problem, good, remedy)


def _equal(told: Sequence[Node], name: str) -> Check:
    by_version: dict[str, list[str]] = {}
    for node in told:
        by_version.setdefault(_facts(node).versions[name], []).append(node.name)
    if set(by_version) == {"-"}:
        return Check(name, False, "not installed", f"Install {name} on every node.")
    if len(by_version) == 1:
        return Check(name, True, next(iter(by_version)))
    found = "; ".join(f"{version}: {_listed(names)}" for version, names in by_version.items())
    remedy = f"Start all nodes from one image, or install the same {name} on each."
    if name == "rlprune":
        remedy += " (`rlprune submit` ships its own unless --installed is given.)"
    return Check(name, False, found or "no node answered", remedy)


def _storage(told: Sequence[Node], unseen: Sequence[str]) -> Check:
    remedy = (
        "Use a storage_path that all nodes reach: a URI, or a folder mounted on each; pass keys "
        "by --env or set them on the nodes."
    )
    check = _per_node(
        "storage",
        told,
        lambda node: _facts(node).storage,
        "shared, written from every node",
        remedy,
    )
    if check.good and unseen:
        found = f"files written by {_listed(unseen)} are not seen by the others"
        return Check("storage", False, found, remedy)
    return check


def _data(told: Sequence[Node]) -> Check:
    remedy = "Put the images at the same path on every node, or on a shared file system."
    check = _per_node("data", told, lambda node: _facts(node).data, "read on every node", remedy)
    if check.good and len({_facts(node).data_names for node in told}) > 1:
        return Check("data", False, "the folder's contents differ between nodes", remedy)
    return check


def _sweep(survey: Survey) -> Check:
    if survey.plan is None:
        remedy = "Correct the specification: `rlprune sweep SPEC --dry-run` shows its trials."
        return Check("sweep", False, survey.plan_problem, remedy)
    return Check("sweep", True, f"{survey.plan.count} trials")


def fits(plan: SweepPlan, nodes: Sequence[Node]) -> str:
    """Why some trial could never start on these nodes; "" if all can."""
    try:
        check_schedulable(plan, [node.resources for node in nodes])
    except ConfigError as error:
        problem = error.problems[0]
        return f"{problem.rule} (there: {problem.value})"
    return ""


def _resources(plan: SweepPlan, nodes: Sequence[Node]) -> Check:
    problem = fits(plan, nodes)
    if not problem:
        cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
        gpus = sum(node.resources.get("GPU", 0.0) for node in nodes)
        return Check("CPU, GPU, memory", True, f"{cpus:g} CPUs, {gpus:g} GPUs in all")
    remedy = (
        "Add larger nodes, or lower resources, trial.rollouts.num_env_runners or "
        "trial.training.batch_size. With an autoscaler: wait longer (--wait-for-nodes)."
    )
    return Check("CPU, GPU, memory", False, problem, remedy)


def _hosts(plan: SweepPlan, node: Node) -> bool:
    """Whether a trial's own process may run on the node."""

    def own(trial: TrialEstimate) -> Mapping[str, float]:
        return trial.bundles[0]

    return any(
        all(node.resources.get(kind, 0.0) >= amount for kind, amount in own(trial).items())
        for trial in plan.trials
    )


def _shared_memory(plan: SweepPlan, told: Sequence[Node]) -> Check:
    needed = plan.shared_image_bytes

    def problem(node: Node) -> str:
        store, shm = node.resources.get("object_store_memory", 0.0), _facts(node).shm_bytes
        if not _hosts(plan, node):
            return ""
        if store < needed:
            return f"the object store has {_bytes(store)}, the images need {_bytes(needed)}"
        if shm < store:
            return (
                f"/dev/shm has {_bytes(shm)}, the object store {_bytes(store)}: it lies on the disk"
            )
        return ""

    remedy = (
        "Give nodes a larger /dev/shm (docker --shm-size; Kubernetes: an emptyDir with medium "
        "Memory there), and ray start --object-store-memory."
    )
    good = f"the images' {_bytes(needed)} fit into the object stores"
    return _per_node("/dev/shm", told, problem, good, remedy)


def _gpu_build(told: Sequence[Node]) -> Check:
    def problem(node: Node) -> str:
        lacks = node.resources.get("GPU", 0.0) > 0 and not _facts(node).cuda
        return "has a GPU, but torch was built without CUDA" if lacks else ""

    return _per_node("torch with CUDA", told, problem, "yes", "Install torch with CUDA there.")


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
