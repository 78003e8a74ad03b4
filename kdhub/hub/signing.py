"""Signatures over a student's folder, made and checked by the `model-signing` package (extra `kdhub[sign]`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kdhub.errors import HubError, UntrustedError, UsageError
from kdhub.hub.files import ATTRIBUTES, SIGNATURE
from kdhub.hub.manifest import RECORD


def sign(folder: Path, key: Path, password: str | None = None) -> None:
    """Write `model.sig` over every file of a folder.

    Args:
        key: a private elliptic-curve key, as `openssl ecparam -name prime256v1 -genkey` makes it.

    Raises:
        UsageError: the key cannot be read, or the extra is not installed.
    """
    signing = _package("signing")
    if not key.is_file():
        raise UsageError(f"there is no key file {key}")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
        config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{key} is not a private key that can sign: {error}",
            hint="make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error


def check(folder: Path, key: Path, name: str) -> None:
    """Check that the holder of a key signed exactly these files.

    Args:
        key: the public key.

    Raises:
        UntrustedError: no signature, another key's, or other files than were signed.
        UsageError: the key cannot be read, or the extra is not installed.
    """
    verifying = _package("verifying")
    if not key.is_file():
        raise UsageError(f"there is no key file {key}")
    if not (folder / SIGNATURE).is_file():
        raise UntrustedError(f"{name} is not signed: it has no {SIGNATURE}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{key} is not a public key: {error}") from error
    try:
        config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever a broken or forged signature makes the package raise
        told = " ".join(str(error).split()) or type(error).__name__
        raise UntrustedError(f"{name} does not carry the signature of {key.name}: {told[:300]}") from error


def still_good(folder: Path, signature: bytes, key: Path, password: str | None = None) -> bool:
    """Whether an older signature of the same private key is over exactly these files: signing gives other bytes each
    time, and the same student should stay the same. When it is, it takes the new one's place."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    private = load_pem_private_key(key.read_bytes(), password.encode() if password else None)
    new = (folder / SIGNATURE).read_bytes()
    with tempfile.NamedTemporaryFile(suffix=".pub") as public:
        public.write(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        public.flush()
        (folder / SIGNATURE).write_bytes(signature)
        try:
            check(folder, Path(public.name), "the older one")
        except UntrustedError:
            (folder / SIGNATURE).write_bytes(new)
            return False
    return True


def _hashing() -> Any:
    return _package("hashing").Config().set_ignored_paths(paths=[SIGNATURE, ATTRIBUTES, RECORD])


def _package(part: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{part}")
    except ImportError as error:
        raise HubError(
            f"signatures need a package that is not installed ({error.name})", hint="pip install 'kdhub[sign]'"
        ) from error
