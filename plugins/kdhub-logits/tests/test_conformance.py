"""Everything kdhub-logits provides keeps the contracts."""

from kdhub.testing import parametrize_with_checks


@parametrize_with_checks("kdhub-logits")
def test_conformance(check):
    check()
