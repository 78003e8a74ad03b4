"""The checks as pytest items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from kdhub.testing._checks import Check, Expected, checks_of


def parametrize_with_checks(plugin: str, *, expected_failures: Expected | None = None) -> Callable[[Any], Any]:
    """Decorate a test with an argument `check`: it becomes one item a check, and one more that counts them.

    Args:
        plugin: a distribution, or the name of its entry point.
        expected_failures: {"similarity": {"resume_is_exact": "reason"}}; one that passes after all is a failure.

    A run in which every check was skipped looks like a green one; so the last item fails when none of them ran.
    """
    import pytest

    checks = checks_of(plugin, expected_failures=expected_failures)
    ran: list[bool] = []
    items = [
        pytest.param(
            _Counted(check, ran),
            id=f"{check.subject.replace(' ', '-')}-{check.name}",
            marks=[pytest.mark.xfail(reason=check.expected_failure, strict=True)] if check.expected_failure else [],
        )
        for check in checks
    ]
    items.append(pytest.param(lambda: _count(ran), id=f"count-of-{len(checks)}"))
    return pytest.mark.parametrize("check", items)


class _Counted:
    def __init__(self, check: Check, ran: list[bool]):
        self.check, self.ran = check, ran

    def __call__(self) -> None:
        try:
            self.check()
        except SkipTest:
            self.ran.append(False)
            raise
        except BaseException:
            self.ran.append(True)
            raise
        self.ran.append(True)


def _count(ran: list[bool]) -> None:
    if not ran:
        raise SkipTest("no check was selected")
    print(f"{len(ran)} checks, {sum(ran)} ran, {len(ran) - sum(ran)} were skipped")
    assert any(ran), f"all {len(ran)} checks were skipped"
