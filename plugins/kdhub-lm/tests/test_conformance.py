"""Everything kdhub-lm provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-lm")
def test_conformance(check):
    check()
