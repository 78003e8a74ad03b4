"""Everything kdhub-generative provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-generative")
def test_conformance(check):
    check()
