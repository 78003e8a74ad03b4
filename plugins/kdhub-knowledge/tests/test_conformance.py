"""Everything kdhub-knowledge provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-knowledge")
def test_conformance(check):
    check()
