"""Optuna's journal: what comes back after a sweep was cut off; no Ray is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlprune.sweep import layout
from rlprune.sweep.plan import plan_sweep
from rlprune.sweep.search import NAME, OptunaJournal
from rlprune.sweep.space import suggest
from rlprune.sweep.spec import SweepSpec, spec_from_dict
from rlprune.sweep.status import FINISHED, SweepStatus
from rlprune.sweep.tuner import _search

pytest.importorskip("optuna")
SPACE = {"agents.clip": {"uniform": [0.1, 0.3]}, "seed": {"choice": [3, 4]}}


def spec_of(**search: Any) -> SweepSpec:
    search = {"algorithm": "optuna", "num_samples": 9, **search}
    return spec_from_dict({"name": "first", "space": SPACE, "search": search}, Path.cwd())


def ask(journal: OptunaJournal, name: str, spec: SweepSpec) -> Any:
    """A trial that runs, as the sweep starts one."""
    trial = journal.study.ask()
    suggest(spec, trial)
    trial.set_user_attr(NAME, name)
    return trial


def nobody(name: str) -> bool:
    return False


def test_interrupted_and_failed_trials_come_back_finished_ones_do_not(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    spec, uri = spec_of(), str(tmp_path)
    journal = OptunaJournal(spec, uri)
    finished, failed, stopped, running = (
        ask(journal, name, spec) for name in ("finished", "failed", "stopped", "running")
    )
    journal.study.ask()  # cut off before it had a name
    journal.study.tell(finished, [0.9, 1000.0])
    journal.study.tell(failed, state=TrialState.FAIL)
    journal.study.tell(stopped, state=TrialState.PRUNED)
    journal.upload()

    again = OptunaJournal(spec, uri)
    assert len(again.study.trials) == 5
    found = again.unfinished(lambda name: name in ("finished", "stopped"))
    assert found == {"failed": failed.params, "running": running.params}
    assert set(found["running"]) == {"agents.clip", "seed"}
    assert all(trial.state.is_finished() for trial in again.study.trials)
    assert [trial.values for trial in again.study.best_trials] == [[0.9, 1000.0]]
    # nothing is lost by being cut off once more, with or without having saved
    for _ in range(2):
        assert (
            OptunaJournal(spec, uri).unfinished(lambda name: name in ("finished", "stopped"))
            == found
        )
        again.upload()
    assert OptunaJournal(spec, uri).unfinished(lambda name: True) == {}


def test_a_sweep_without_a_journal_starts_with_nothing(tmp_path: Path) -> None:
    journal = OptunaJournal(spec_of(), str(tmp_path / "new"))
    assert journal.unfinished(nobody) == {}
    assert journal.study.trials == []
    names = [direction.name for direction in journal.study.directions]
    assert names == ["MAXIMIZE", "MINIMIZE"]
    assert not (tmp_path / "new").exists()
    journal.upload()
    assert Path(layout.journal(str(tmp_path / "new"))).is_file()


def test_interrupted_trials_are_tried_first_with_their_parameters(tmp_path: Path) -> None:
    spec, uri = spec_of(), str(tmp_path)
    journal = OptunaJournal(spec, uri)
    trials = {name: ask(journal, name, spec) for name in ("0000_a", "0001_b")}
    journal.upload()
    again = OptunaJournal(spec, uri)
    first = list(again.unfinished(nobody).values())
    searcher = again.searcher(lambda trial: {"values": suggest(spec, trial)}, first)
    suggested = [searcher.suggest(str(number))["values"] for number in range(3)]
    expected = [trial.params for trial in trials.values()]
    assert suggested[:2] == expected
    assert suggested[2] not in expected
    assert 0.1 <= suggested[2]["agents.clip"] <= 0.3


def test_cut_off_before_the_interrupted_trials_had_all_begun_again(tmp_path: Path) -> None:
    spec, uri = spec_of(), str(tmp_path)
    journal = OptunaJournal(spec, uri)
    for name in ("0000_a", "0001_b"):
        ask(journal, name, spec)
    journal.upload()
    second = OptunaJournal(spec, uri)
    expected = second.unfinished(nobody)
    names = iter(expected)

    def define(trial: Any) -> dict[str, Any]:
        trial.set_user_attr(NAME, next(names))
        return {"values": suggest(spec, trial)}

    second.searcher(define, list(expected.values())).suggest("the first one only")
    second.upload()
    third = OptunaJournal(spec, uri)
    assert third.unfinished(nobody) == expected
    assert all(trial.state.is_finished() for trial in third.study.trials)
    assert third.unfinished(nobody) == expected


def test_equal_points_keep_their_own_names(tmp_path: Path) -> None:
    """Of two seeds only two different points can be made: three trials repeat one."""
    values = {"name": "first", "space": {"seed": {"choice": [3, 4]}}}
    spec = spec_from_dict(
        {**values, "search": {"algorithm": "optuna", "num_samples": 3}}, Path.cwd()
    )
    status = SweepStatus()

    def names_of_a_session() -> list[str]:
        found = _search(spec, plan_sweep(spec), str(tmp_path), status)
        journal, searcher, samples = found.journal, found.searcher, found.samples
        assert journal is not None
        points = [searcher.suggest(str(number))["point"] for number in range(samples)]
        journal.upload()
        assert all(point["trial"]["name"] == point["name"] for point in points)
        return [point["name"] for point in points]

    names = names_of_a_session()
    assert [name[:4] for name in names] == ["0000", "0001", "0002"]
    status.begin(names, 3)
    assert names_of_a_session() == names  # all were cut off
    status.trial(names[1]).state = FINISHED
    assert names_of_a_session() == [names[0], names[2]]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_seed_decides_what_is_tried(tmp_path: Path, sampler: str) -> None:
    def suggestions(folder: str, seed: int) -> list[Any]:
        spec = spec_of(sampler=sampler, seed=seed)
        journal = OptunaJournal(spec, str(tmp_path / folder))
        searcher = journal.searcher(lambda trial: {"values": suggest(spec, trial)}, [])
        return [searcher.suggest(str(number))["values"] for number in range(3)]

    assert suggestions("a", 0) == suggestions("b", 0) != suggestions("c", 1)


def test_the_journal_is_plain_json_and_tune_saves_nothing(tmp_path: Path) -> None:
    spec = spec_of()
    journal = OptunaJournal(spec, str(tmp_path))
    searcher = journal.searcher(lambda trial: {"values": suggest(spec, trial)}, [])
    searcher.suggest("one")
    searcher.on_trial_complete("one", {"validation_accuracy": 0.5, "storage_bytes": 10.0})
    journal.upload()
    text = Path(layout.journal(str(tmp_path))).read_text(encoding="ascii")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) >= 5 and all(isinstance(line, dict) for line in lines)
    assert "pickle" not in text and "gASV" not in text  # (how pickles begin in base64)
    assert [trial.values for trial in journal.study.trials] == [[0.5, 10.0]]
    searcher.save(str(tmp_path / "searcher"))
    assert (tmp_path / "searcher").read_bytes() == b""
