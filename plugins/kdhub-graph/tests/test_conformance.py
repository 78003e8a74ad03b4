"""Everything kdhub-graph provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-graph")
def test_conformance(check):
    check()
