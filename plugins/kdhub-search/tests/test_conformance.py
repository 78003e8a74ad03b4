"""Everything kdhub-search provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-search")
def test_conformance(check):
    check()
