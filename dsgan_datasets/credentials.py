"""Locations and messages without the credentials that URLs may hold.

Everything that prints, logs or stores a location, or the error of a package that knows one, passes it through
`without_credentials`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

#: What takes the place of a secret.
HIDDEN = "***"
#: "user:password@" after "://". A password may hold a slash (those of S3 do); the port is then not a number.
_USER = re.compile(r"(?<=://)(?:[^/\s?#'\"]*|[^/\s:@'\"\[]*:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"]*)@")
#: The value in "?name=value" or "&name=value"; punctuation that ends it belongs to the sentence.
_VALUE = re.compile(r"(?<=[?&;#])([\w.%\[\]-]+)=([^&\s#'\"<>]*?)(?=[:,.;)\]}>]*(?:[&\s#'\"<>]|$))")
#: "?secret", without a name. A "?" in the path of an object store is part of a name.
_BARE = re.compile(r"(https?://[^\s?'\"]*\?)([^\s=&#'\"<>]+?)(?=[:,.;)\]}>]*(?:[\s#'\"<>]|$))", re.IGNORECASE)
#: Headers and settings, as errors of packages quote them.
_NAMED = re.compile(
    r"(authorization|security[-_]token|secret[-_]?access[-_]?key|access[-_]token|password)"
    r"(['\"]?\s*[:=]\s*['\"]?)((?:bearer|basic)\s+)?[^\s'\",;&}]+",
    re.IGNORECASE,
)
#: Shorter parts of a URL are not looked for in messages: they would hide half of the text.
_SHORTEST = 4


def without_credentials(text: str, known: Iterable[str] = ()) -> str:
    """A text in which no URL shows a user, a password, or a value of its query.

    Args:
        text: a location, or a message that may quote one.
        known: secrets to hide wherever they stand, see `secrets_of`.

    Example:
        >>> without_credentials("cannot reach https://me:pass@host/set?sig=abc: no answer")
        'cannot reach https://***@host/set?sig=***: no answer'
        >>> without_credentials("s3://bucket/run[1]/what?")
        's3://bucket/run[1]/what?'
    """
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _VALUE.sub(rf"\1={HIDDEN}", text)
    text = _BARE.sub(rf"\1{HIDDEN}", text)
    return _NAMED.sub(rf"\1\2{HIDDEN}", text)


def secrets_of(location: str) -> frozenset[str]:
    """The credentials in a URL, as written, decoded and encoded: packages quote them without the URL around them.

    Example:
        >>> sorted(secrets_of("https://me:pass%21word@host/set?sig=abcdef"))
        ['abcdef', 'me%3Apass%21word', 'me:pass!word', 'me:pass%21word', 'pass!word', 'pass%21word']
    """
    found = set()
    if user := _USER.search(location):
        whole = user[0].removesuffix("@")
        found |= {whole, whole.partition(":")[2] or whole}
    if "://" in location:
        query = location.partition("?")[2]
        found |= {part.partition("=")[2] for part in re.split("[&;#]", query)}
        if location.lower().startswith("http") and "=" not in query:
            found.add(query)
    forms = {form for secret in found for form in (secret, unquote(secret), quote(unquote(secret), safe=""))}
    return frozenset(form for form in forms if len(form) >= _SHORTEST)
