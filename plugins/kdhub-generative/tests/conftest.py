"""What all tests here share."""

from kdhub.testing.fixtures import home
