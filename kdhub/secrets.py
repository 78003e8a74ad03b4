"""What must not be told: tokens, keys and passwords, by their form and by the names of the variables that hold them.

`redact` stands between every output and the world; `find` says where publishing, and a recipe, would tell one.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from functools import lru_cache

_TOKEN = (
    r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|pypi-AgE[\w-]{20,}|npm_[A-Za-z0-9]{36}|dop_v1_[0-9a-f]{64}|SG\.[\w-]{16,}\.[\w-]{16,}|shpat_[0-9a-f]{32}"
    r"|xapp-\d-[A-Za-z0-9-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{20,}|sq0(?:atp|csp)-[\w-]{20,}"
    r"|dapi[0-9a-f]{32}|hv[sb]\.[\w-]{20,}|AGE-SECRET-KEY-1[A-Z0-9]{50,}|gsk_[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{40,}"
    r"|nvapi-[\w-]{40,}|xai-[A-Za-z0-9]{40,}|dckr_pat_[\w-]{20,}|gl(?:sa|c)_[A-Za-z0-9+/=_]{32,}|lin_api_[A-Za-z0-9]{32,}"
    r"|ntn_[A-Za-z0-9]{40,}|figd_[\w-]{30,}|SK[0-9a-f]{32}|key-[0-9a-f]{32}|\d{8,10}:AA[\w-]{33}"
    r"|ya29\.[\w-]{20,}|r8_[A-Za-z0-9]{37}|wandb_v1_\w{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)

SECRET = re.compile(
    rf"(?<![A-Za-z0-9])(?:{_TOKEN})|://[^/\s:@]{{1,256}}:[^/\s@]{{1,256}}@"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"|(?i:aws_secret_access_key|secretaccesskey)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
    r"|(?i:\b(?:accountkey|sharedaccesskey)=)[A-Za-z0-9+/]{32,}={0,2}"
    r"|hooks\.slack\.com/services/[A-Z0-9]+/[A-Z0-9]+/\w{16,}|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{30,}"
    r"|(?i:\b(?:api|secret|access|auth|client|private)[_-]?(?:key|token|secret)|\bpass(?:word|wd))"
    r"[\"']?\s*[:=]\s*[\"'](?=[^\"'\s]*\d)(?=[^\"'\s]*[A-Za-z])[^\"'\s]{10,}[\"']"
    r"|(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[\w.+/=~-]{8,}"
    r"|[?&](?i:access_token|api_key|apikey|token|sig|signature|password)=[^&\s\"']{8,}"
)
"""A token, a private key, or a password in an address, with few mistakes: what holds one is refused."""

# What is only shown may be cut generously.
_SHOWN = re.compile(
    r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza)[A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^/\s:@]{1,256}:[^/\s@]{1,256}(?=@)|(?i:(?<=bearer ))[\w.+/=~-]{8,}"
    r"|(?i:(?<=[?&]token=)|(?<=[?&]sig=)|(?<=[?&]api_key=)|(?<=access_token=)|(?<=[?&]password=))[^&\s\"']+"
)
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{24,4096}={0,2}")


def own() -> list[str]:
    """The values of this process's variables whose names say that they are secret (`OPENAI_API_KEY`), longest first.
    Short ones are placeholders, words and paths are settings."""
    found = {v.strip() for k, v in os.environ.items() if _NAMES.search(k.upper())}
    return sorted(filter(_is_one, found), key=len, reverse=True)


def _is_one(value: str) -> bool:
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return len(value) >= (8 if mixed else 16) and not value.startswith(("/", "~", "."))


def redact(text: str) -> str:
    """The text without what looks like a secret, and without those of this user: one pasted in the wrong place,
    or repeated by a server, must not end up in a log or a file."""
    for value in own():
        if value in text:
            text = text.replace(value, "***")
    return SECRET.sub(_cut, _SHOWN.sub("***", text))


class Formatter(logging.Formatter):
    """Lines of a log without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _cut(found: re.Match[str]) -> str:
    """What stands in front of a value (`Authorization: Bearer `) stays."""
    name = re.match(r".*?(?:[:=]\s*[\"']?(?:(?i:bearer|basic|token)\s+)?)", found[0])
    return f"{name[0]}***" if name else "***"


def find(text: str) -> str | None:
    """The first secret in a text, also one in base64 or with a zero byte after each letter (UTF-16); "" for one of this
    user's own, which is not repeated, not even in part."""
    text = text.replace("\0", "") if "\0" in text else text
    if found := SECRET.search(text):
        return found[0]
    if any(value in text for value in own()):
        return ""
    for run in _BASE64.findall(text):
        if (inner := _decoded(run)) and (found := SECRET.search(inner)):
            return found[0]
    return None


@lru_cache(maxsize=1024)
def _decoded(run: str) -> str:
    try:
        return base64.b64decode(run + "=" * (-len(run) % 4), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
