import sys

from kdhub import hookimpl


@hookimpl
def kdhub_methods():
    sys.exit("no licence key")
