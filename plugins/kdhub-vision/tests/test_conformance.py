"""Everything kdhub-vision provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-vision")
def test_conformance(check):
    check()
