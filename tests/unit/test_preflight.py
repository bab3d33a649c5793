"""Preflight: what a node tells, and the verdicts on what nodes have told."""

from __future__ import annotations

import dataclasses
import io
import platform
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from rlprune.config import DataConfig
from rlprune.jobs.facts import (
    NodeFacts,
    drop_probe,
    look_at_data,
    node_facts,
    read_probes,
    write_probe,
)
from rlprune.jobs.preflight import table
from rlprune.jobs.verdicts import Check, Node, Survey, fits, judge
from rlprune.source import source_digest
from rlprune.sweep.plan import SweepPlan, plan_sweep
from rlprune.sweep.spec import spec_from_dict

GIB = 2.0**30
IMAGES = 1797 * (64 + 8)
"""Bytes of scikit-learn's digits: 64 pixels and an int64 label each."""

GOOD = NodeFacts(
    versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "rlprune": "0.1 (abc)"},
    cuda=False,
    shm_bytes=int(2 * GIB),
    token_mode=True,
    token_file="",
    storage="",
    data="",
    data_names="e3b0",
)
RESOURCES = {"CPU": 2.0, "memory": 8 * GIB, "object_store_memory": GIB}


def node_of(name: str, facts: NodeFacts | None = GOOD, **resources: float) -> Node:
    return Node(name, name, {**RESOURCES, **resources}, facts, "" if facts else "no answer")


def plan_of(**values: Any) -> SweepPlan:
    spec = {"name": "first", "space": {"budgets.storage_max": {"grid": [0.4, 0.6]}}, **values}
    return plan_sweep(spec_from_dict(spec, Path.cwd()))


@pytest.fixture(scope="module")
def plan() -> SweepPlan:
    return plan_of()


def verdict(checks: list[Check], what: str) -> Check:
    (found,) = [check for check in checks if check.what == what]
    return found


def bad(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not check.good]


# --- verdicts -------------------------------------------------------------------------------


def test_equal_nodes_pass(plan: SweepPlan) -> None:
    checks = judge(Survey([node_of("a"), node_of("b")], plan, "", []))
    assert bad(checks) == [] and not any(check.remedy for check in checks)
    assert [check.what for check in checks] == [
        "nodes", "authentication", "python", "ray", "torch", "rlprune", "storage", "data",
        "sweep", "CPU, GPU, memory", "/dev/shm",
    ]  # fmt: skip
    assert verdict(checks, "python").found == "3.11.7"
    assert "4 CPUs" in verdict(checks, "CPU, GPU, memory").found


@pytest.mark.parametrize(
    ("what", "change", "words"),
    [
        ("authentication", {"token_mode": False}, "RAY_AUTH_MODE is not token"),
        ("authentication", {"token_file": "/t (mode 0644)"}, "others can read /t (mode 0644)"),
        ("python", {"versions": {**GOOD.versions, "python": "3.10.1"}}, "3.10.1: b"),
        ("ray", {"versions": {**GOOD.versions, "ray": "2.59.0"}}, "2.60.0: a, c"),
        ("torch", {"versions": {**GOOD.versions, "torch": "-"}}, "-: b"),
        ("rlprune", {"versions": {**GOOD.versions, "rlprune": "0.1 (fff)"}}, "0.1 (fff): b"),
        ("storage", {"storage": "no such bucket"}, "b: no such bucket"),
        ("data", {"data": "/images: there is no such folder"}, "b: /images"),
        ("data", {"data_names": "ffff"}, "differ"),
        ("/dev/shm", {"shm_bytes": 2**26}, "/dev/shm has 64.0 MiB, the object store 1.0 GiB"),
    ],
)
def test_one_node_that_differs_is_named(
    plan: SweepPlan, what: str, change: dict[str, Any], words: str
) -> None:
    nodes = [node_of("a"), node_of("b", dataclasses.replace(GOOD, **change)), node_of("c")]
    checks = judge(Survey(nodes, plan, "", []))
    assert bad(checks) == [what]
    assert words in verdict(checks, what).found and verdict(checks, what).remedy


def test_many_nodes_are_not_all_listed(plan: SweepPlan) -> None:
    broken = dataclasses.replace(GOOD, storage="down")
    nodes = [node_of(f"n{number}", broken) for number in range(9)]
    assert verdict(judge(Survey(nodes, plan, "", [])), "storage").found == (
        "n0, n1, n2 and 6 more: down"
    )


def test_what_is_installed_nowhere_is_not_equal(plan: SweepPlan) -> None:
    nowhere = dataclasses.replace(GOOD, versions={**GOOD.versions, "torch": "-"})
    checks = judge(Survey([node_of("a", nowhere)], plan, "", []))
    assert verdict(checks, "torch").found == "not installed"


def test_a_silent_node_is_told_and_the_others_still_checked(plan: SweepPlan) -> None:
    checks = judge(Survey([node_of("a"), node_of("b", None)], plan, "", []))
    assert bad(checks) == ["nodes"] and "b of 2: no answer" in verdict(checks, "nodes").found
    assert bad(judge(Survey([node_of("b", None)], plan, "", [])))[:2] == ["nodes", "authentication"]
    assert "nodes" in bad(judge(Survey([], plan, "", [])))


def test_files_that_others_do_not_see_are_a_storage_problem(plan: SweepPlan) -> None:
    checks = judge(Survey([node_of("a"), node_of("b")], plan, "", ["b"]))
    assert bad(checks) == ["storage"] and "written by b" in verdict(checks, "storage").found


def test_authentication_can_be_waived(plan: SweepPlan) -> None:
    nodes = [node_of("a", dataclasses.replace(GOOD, token_mode=False))]
    checks = judge(Survey(nodes, plan, "", [], must_authenticate=False))
    assert bad(checks) == []
    assert "--allow-unauthenticated" in verdict(checks, "authentication").found


def test_a_sweep_that_cannot_be_planned_is_one_more_problem() -> None:
    checks = judge(Survey([node_of("a")], None, "no images", []))
    assert bad(checks) == ["sweep"] and verdict(checks, "sweep").found == "no images"


def test_resources_that_no_node_has() -> None:
    plan = plan_of(resources={"cpus": 3})
    assert "a trial needs 3 CPU" in fits(plan, [node_of("a"), node_of("b")])
    checks = judge(Survey([node_of("a"), node_of("b")], plan, "", []))
    assert bad(checks) == ["CPU, GPU, memory"]
    assert fits(plan, [node_of("a"), node_of("b", CPU=3.0)]) == ""


def test_images_must_fit_into_the_object_store_where_trials_run(plan: SweepPlan) -> None:
    assert plan.shared_image_bytes == IMAGES
    small = node_of("head", CPU=0.0, object_store_memory=IMAGES - 1.0)
    assert bad(judge(Survey([small, node_of("a")], plan, "", []))) == []  # no trial runs there
    small = node_of("b", object_store_memory=IMAGES - 1.0)
    checks = judge(Survey([small, node_of("a")], plan, "", []))
    assert bad(checks) == ["/dev/shm"]
    found = verdict(checks, "/dev/shm").found
    assert found == "b: the object store has 0.1 MiB, the images need 0.1 MiB"


def test_a_gpu_needs_torch_with_cuda() -> None:
    plan = plan_of(resources={"gpus": 1})
    checks = judge(Survey([node_of("a", GPU=1.0), node_of("b")], plan, "", []))
    assert bad(checks) == ["torch with CUDA"] and verdict(checks, bad(checks)[0]).found[0] == "a"
    cuda = dataclasses.replace(GOOD, cuda=True)
    assert bad(judge(Survey([node_of("a", cuda, GPU=1.0), node_of("b")], plan, "", []))) == []


def test_the_table_says_what_to_do() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table([Check("ray", True, "2.60.0"), Check("data", False, "[x]", "Mount it.")]))
    text = console.export_text()
    assert "ok" in text and "NO" in text and "[x]" in text and "Mount it." in text


# --- facts ----------------------------------------------------------------------------------


def test_this_machine_tells_about_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o644)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    probe = str(tmp_path / "probe")
    assert write_probe("one", probe) == ""
    facts = node_facts("one", probe, [DataConfig(name="digits")])
    assert facts.versions["python"] == platform.python_version()
    assert (facts.versions["ray"], facts.versions["torch"]) == (ray.__version__, torch.__version__)
    assert facts.versions["rlprune"].endswith(f"({source_digest()})")
    assert facts.token_mode and facts.token_file == f"{token} (mode 0644)"
    assert (facts.storage, facts.data) == ("", "")
    assert read_probes(probe, ["one", "two"]) == ["two"]
    assert drop_probe(probe) == "" and not Path(probe).exists()
    token.chmod(0o600)
    assert node_facts("one", probe, []).token_file == ""


def test_a_storage_that_is_not_shared_is_noticed(tmp_path: Path) -> None:
    facts = node_facts("two", str(tmp_path / "never_written"), [])
    assert "never_written" in facts.storage
    probe = tmp_path / "probe"
    write_probe("one", str(probe))
    (probe / "first").write_text("of somebody else")
    assert "another file" in node_facts("two", str(probe), []).storage


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in write_probe("one", str(tmp_path / "file" / "probe"))


def test_looking_at_images(tmp_path: Path) -> None:
    def look(root: Path | None, name: Any = "imagefolder") -> tuple[str, list[str]]:
        return look_at_data(DataConfig(name=name, root=None if root is None else str(root)))

    assert look(None, "digits") == look(None, "cifar10") == ("", [])
    assert "no such folder" in look(tmp_path / "none")[0]
    assert "no such folder, or it is empty" in look(tmp_path)[0]
    (tmp_path / "train" / "cats").mkdir(parents=True)
    problem, names = look(tmp_path)
    assert "no file that can be read" in problem and names == ["train"]
    (tmp_path / "train" / "cats" / "1.jpg").write_bytes(b"x")
    (tmp_path / "val").mkdir()
    assert look(tmp_path) == ("", ["train", "val"])
