"""The conformance kit: does a plugin keep the contracts?

    # tests/test_conformance.py of a plugin
    from kdhub.testing import parametrize_with_checks

    @parametrize_with_checks("kdhub-similarity")
    def test_conformance(check):
        check()

`kdhub plugins check kdhub-similarity` does the same at the command line. Which checks a plugin meets depends on what
its specs declare, never on its name. Methods are tried on the tiny recipe of their task (`Task.tiny_recipe`).
"""

from kdhub.testing._checks import Check, Result, check_method, check_plugin, checks_of, run_checks, summary
from kdhub.testing._pytest import parametrize_with_checks

__all__ = [
    "Check",
    "Result",
    "check_method",
    "check_plugin",
    "checks_of",
    "parametrize_with_checks",
    "run_checks",
    "summary",
]
