"""Checks a cluster from every one of its nodes before a sweep starts; runs on the cluster.

``python -m rlprune.jobs.preflight SPEC`` prints a table; exit status 2 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlprune import files
from rlprune.config import DataConfig
from rlprune.errors import BackboneError, DataError, InvalidInputError, RlpruneError
from rlprune.jobs.facts import drop_probe, node_facts, read_probes, write_probe
from rlprune.jobs.supervise import tell
from rlprune.jobs.verdicts import Check, Node, Survey, fits, judge
from rlprune.sweep import layout
from rlprune.sweep.loggers import check_packages
from rlprune.sweep.plan import SweepPlan, plan_sweep
from rlprune.sweep.spec import SweepSpec, load_spec
from rlprune.training.cluster import private_ray

_ANSWER_SECONDS = 180.0  # a new node first gets the job's code
_PAUSE = 2.0
_WIDTH = 160
REFUSED = 2


def survey(spec: SweepSpec, wait_for_nodes: float, must_authenticate: bool) -> Survey:
    """Asks every node; Ray must be running.

    Args:
        spec: the sweep.
        wait_for_nodes: seconds until which a trial must fit on the nodes that there are.
        must_authenticate: see :class:`Survey`.
    """
    plan, problem = _planned(spec)
    if plan is not None:
        _wait_for_nodes(plan, wait_for_nodes)
    probe = files.join(
        layout.absolute(spec.storage_path), f".rlprune-preflight-{uuid.uuid4().hex[:12]}"
    )
    nodes, unseen = _ask(_alive(), probe, [] if plan is None else _image_sets(plan))
    return Survey(nodes, plan, problem, unseen, must_authenticate)


def _planned(spec: SweepSpec) -> tuple[SweepPlan | None, str]:
    try:
        check_packages(spec)
        return plan_sweep(spec), ""
    except InvalidInputError as error:
        return None, " ".join(str(problem) for problem in error.problems)
    except (BackboneError, DataError) as error:
        return None, str(error)


def _image_sets(plan: SweepPlan) -> list[DataConfig]:
    return list(dict.fromkeys(trial.config.data for trial in plan.trials))


def _alive() -> list[Node]:
    import ray

    return [
        Node(
            id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} {node['NodeID'][:6]}",
            resources=dict(node["Resources"]),
            facts=None,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _wait_for_nodes(plan: SweepPlan, seconds: float) -> None:
    """Until every trial fits; the autoscaler, if there is one, is asked for the largest one."""
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + seconds
    missing = fits(plan, _alive())
    if not missing or seconds <= 0:
        return
    largest = max(plan.trials, key=lambda trial: (trial.gpus, trial.cpus))
    request_resources(bundles=[dict(bundle) for bundle in largest.bundles])
    tell(f"Waiting up to {seconds:g} s for nodes: {missing}")
    while fits(plan, _alive()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    request_resources(bundles=[])


def _ask(
    nodes: Sequence[Node], probe: str, data: Sequence[DataConfig]
) -> tuple[list[Node], list[str]]:
    """The nodes with what they told, and the names of those whose files others do not see."""
    ids = [node.id for node in nodes]
    for node in ids:  # a node that cannot write says so itself, below
        if _on_nodes([node], write_probe, node, probe)[0] == "":
            break
    answers = _on_nodes(ids, node_facts, None, probe, data)
    told = [
        Node(n.id, n.name, n.resources, None, str(answer))
        if isinstance(answer, BaseException)
        else Node(n.id, n.name, n.resources, answer)
        for n, answer in zip(nodes, answers, strict=True)
    ]
    wrote = {node.id: node.name for node in told if node.facts and not node.facts.storage}
    missing: set[str] = set()
    for answer in _on_nodes(list(wrote), read_probes, probe, list(wrote)):
        missing |= set(answer) if isinstance(answer, list) else set()
    _on_nodes(ids, drop_probe, probe)  # on each: where they share nothing, each has its own
    return told, [wrote[node] for node in wrote if node in missing]


def _on_nodes(ids: Sequence[str], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of a function on each node, or what went wrong there (never raised).

    A first argument of None stands for the node's id.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(function)
    references = []
    for node in ids:
        first, *rest = arguments
        options = remote.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        references.append(options.remote(node if first is None else first, *rest))
    ray.wait(references, num_returns=len(references), timeout=_ANSWER_SECONDS)
    return [_answer(reference) for reference in references]


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return TimeoutError(f"did not answer within {_ANSWER_SECONDS:g} s")
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return RuntimeError(lines[-1] if lines else type(error).__name__)


def table(checks: Sequence[Check]) -> Table:
    """The checks for a terminal."""
    shown = Table(title="Preflight")
    for title in ("check", "", "found", "what to do"):
        shown.add_column(title, overflow="fold")
    for check in checks:
        verdict = "[green]ok[/]" if check.good else "[red]NO[/]"
        shown.add_row(check.what, verdict, escape(check.found), escape(check.remedy))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 0 if all is well, else 2."""
    parser = argparse.ArgumentParser(prog="python -m rlprune.jobs.preflight")
    parser.add_argument("spec")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--wait-for-nodes", type=float, default=0.0)
    parser.add_argument("--allow-unauthenticated", action="store_true")
    options = parser.parse_args(arguments)
    try:
        spec = load_spec(options.spec, options.overrides)
        with private_ray(os.cpu_count() or 1, 0):
            found = survey(spec, options.wait_for_nodes, not options.allow_unauthenticated)
    except RlpruneError as error:
        tell(str(error))
        return error.exit_status
    checks = judge(found)
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table(checks))
    bad = [check.what for check in checks if not check.good]
    if bad:
        tell(f"Not started: {', '.join(bad)}. See the table.")
    return REFUSED if bad else 0


if __name__ == "__main__":
    sys.exit(main())
