"""Everything that kdhub-tasks provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-tasks")
def test_conformance(check):
    check()
