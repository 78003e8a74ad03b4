"""Everything kdhub-text provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-text")
def test_conformance(check):
    check()
