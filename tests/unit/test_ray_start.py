"""Starting Ray on a busy machine: patience, and an error that says what to do."""

from __future__ import annotations

import pytest

from rlprune.errors import ClusterError
from rlprune.training.cluster import start_patiently

SLOW = "The current node timed out during startup. This could happen because ..."


class Starts:
    """Fails as Ray does so many times, then starts."""

    def __init__(self, failures: int, message: str = SLOW) -> None:
        self.failures, self.message = failures, message
        self.started = self.stopped = 0

    def start(self) -> None:
        self.started += 1
        if self.started <= self.failures:
            raise Exception(self.message)

    def stop(self) -> None:
        self.stopped += 1


def test_a_slow_start_is_tried_again() -> None:
    ray = Starts(failures=2)
    start_patiently(ray.start, ray.stop)
    assert (ray.started, ray.stopped) == (3, 2)


def test_three_slow_starts_are_an_error_with_a_remedy() -> None:
    ray = Starts(failures=3)
    with pytest.raises(ClusterError, match=r"3 times .* more than 30 s.*try again"):
        start_patiently(ray.start, ray.stop)
    assert (ray.started, ray.stopped) == (3, 3)


def test_other_errors_are_passed_on_at_once() -> None:
    ray = Starts(failures=1, message="port in use")
    with pytest.raises(Exception, match="port in use"):
        start_patiently(ray.start, ray.stop)
    assert (ray.started, ray.stopped) == (1, 0)
