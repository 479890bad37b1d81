"""What locations and messages show of the credentials in URLs: nothing."""

from __future__ import annotations

import pytest

from dsgan_datasets.credentials import secrets_of, without_credentials
from dsgan_datasets.shards import ShardError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@h:8080/a@b", "http://***@h:8080/a@b"),
        ("http://user@h/x", "http://***@h/x"),
        ("http://u:p/with/slashes@h/x", "http://***@h/x"),
        ("http://u:p@ss@h/x", "http://***@h/x"),
        ("http://u:p@[::1]:80/x@y", "http://***@[::1]:80/x@y"),
        ("s3://AKIA:abc/def+gh@bucket/x", "s3://***@bucket/x"),
        ("cannot reach 'https://u:p@h/x': no", "cannot reach 'https://***@h/x': no"),
        ("URL('http://h/x?sig=a/b%3D&se=1')", "URL('http://h/x?sig=***&se=***')"),
        (
            "https://h/a?X-Amz-Signature=zzz&x=1, and https://u:v@i/b",
            "https://h/a?X-Amz-Signature=***&x=***, and https://***@i/b",
        ),
        ("https://h/x?sig=a=b==: gone", "https://h/x?sig=***: gone"),
        ("https://h/x?SECRET: bad", "https://h/x?***: bad"),
        ("https://h/x#access_token=abc", "https://h/x#access_token=***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': '***'}"),
        ("x-amz-security-token: abc", "x-amz-security-token: ***"),
        ("simplecache::https://u:p@h/x", "simplecache::https://***@h/x"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_credentials(text) == shown == without_credentials(shown)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run@3/x",
        "s3://bucket/run[1]/what?",
        "http://h:8080/a@b/c",
        "http://[::1]:80/x@y",
        "/data/me@work/set?1",
        "is it? yes=no",
        "memory://somewhere/deep",
        "a token was expected: 5",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    location = "s3://AKIAKEY:abc/def+gh@bucket/x?sig=t0ken%2Fvalue"
    message = 'Invalid bucket name "AKIAKEY:abc/def+gh@bucket": abc%2Fdef%2Bgh, t0ken/value, t0ken%2Fvalue'
    shown = without_credentials(message, secrets_of(location))
    assert shown == 'Invalid bucket name "***@bucket": ***, ***, ***'
    assert secrets_of("/data/a@b?c=d") == frozenset()


def test_errors_show_no_credentials_and_no_control_sequences() -> None:
    error = ShardError("https://me:hunter2@host/set holds \x1b[31mred")
    assert str(error) == "https://***@host/set holds \\x1b[31mred"
