"""What an outbound request may look like, and which redirects it follows."""

from __future__ import annotations

import pytest

from muster.domain.errors import InvalidInput
from muster.outbound.requests import (
    OutboundRefused,
    OutboundRequest,
    Target,
    is_redirect,
    parse_headers,
    parse_method,
    parse_url,
    redirected,
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://a.test", Target("http", "a.test", 80, "/")),
        ("HTTPS://A.Test./x?y=1#z", Target("https", "a.test", 443, "/x?y=1")),
        ("http://a.test:8080/ä?q=ü", Target("http", "a.test", 8080, "/%C3%A4?q=%C3%BC")),
        ("http://[::1]:81/", Target("http", "::1", 81, "/")),
        ("https://10.0.0.1/a%2Fb;c=d", Target("https", "10.0.0.1", 443, "/a%2Fb;c=d")),
    ],
)
def test_urls_are_taken_apart(text: str, target: Target) -> None:
    assert parse_url(text) == target
    assert parse_url(target.url) == target


def test_the_authority_leaves_the_usual_port_out() -> None:
    assert parse_url("https://a.test:443/").authority == "a.test"
    assert parse_url("http://[fd00::1]:8080/").authority == "[fd00::1]:8080"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.test",
        "ftp://a.test/",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://a.test:0/",
        "http://a.test:65536/",
        "http://a.test:x/",
        "http://user:secret@a.test/",
        "http://@a.test/",
        "http://a.test\\@b.test/",
        "http://a.test/ HTTP/1.1\r\nX: y",
        "http://a.test/\x00",
        " http://a.test/",
        "http://ä.test/",
        "http://a..test/",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "http://-a.test/",
        "http://a.test/" + "x" * 8192,
    ],
)
def test_bad_urls_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(text, "input.url")
    assert caught.value.field == "input.url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nHost: evil"),
        ("X-A", "b\nc"),
        ("X-A", "b\x00"),
        ("X-A", "ü"),
        ("X-A", "x" * 8193),
        ("X A", "b"),
        ("X-A\r\nHost", "b"),
        ("X:A", "b"),
        ("", "b"),
        ("Host", "b.test"),
        ("hOST", "b.test"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "upgrade"),
        ("Proxy-Authorization", "x"),
        ("Expect", "100-continue"),
    ],
)
def test_headers_that_could_inject_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_headers({"X-Good": "1", name: value})
    assert caught.value.field.startswith("headers")


def test_headers_are_bounded() -> None:
    assert len(parse_headers({f"X-{n}": "" for n in range(64)})) == 64
    with pytest.raises(InvalidInput, match="at most 64"):
        parse_headers({f"X-{n}": "" for n in range(65)})


def test_methods_are_listed() -> None:
    assert parse_method("PATCH") == "PATCH"
    for text in ("CONNECT", "TRACE", "get", "GET / HTTP/1.1\r\n"):
        with pytest.raises(InvalidInput):
            parse_method(text)


POST = OutboundRequest(
    "POST",
    parse_url("http://a.test/one/two?x=1"),
    (("Authorization", "secret"), ("Content-Type", "text/plain")),
    b"body",
)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/three", "http://a.test/three"),
        ("three", "http://a.test/one/three"),
        ("?y=2", "http://a.test/one/two?y=2"),
        ("http://A.test:80/z", "http://a.test/z"),
        ("//a.test/z", "http://a.test/z"),
        ("https://a.test/z", "https://a.test/z"),
    ],
)
def test_redirects_to_the_same_server_are_followed(location: str, url: str) -> None:
    kept = redirected(POST, 307, location)
    assert (kept.target.url, kept.method, kept.body) == (url, "POST", b"body")
    assert kept.headers == POST.headers
    other = redirected(POST, 303, location)
    assert (other.target.url, other.method, other.body) == (url, "GET", b"")
    assert other.headers == (("Authorization", "secret"),)


@pytest.mark.parametrize(
    "location",
    [
        "http://b.test/",
        "//b.test/",
        "http://a.test:81/",
        "https://a.test:444/",
        "http://a.test.evil.test/",
        "http://a.test@b.test/",
        "file:///etc/passwd",
        "http://[::1",
        "/x y",
    ],
)
def test_redirects_elsewhere_are_refused(location: str) -> None:
    with pytest.raises(OutboundRefused):
        redirected(POST, 302, location)


def test_no_way_back_from_https() -> None:
    request = OutboundRequest("GET", parse_url("https://a.test/"))
    with pytest.raises(OutboundRefused):
        redirected(request, 302, "http://a.test/")


def test_which_statuses_are_redirects() -> None:
    assert [s for s in range(300, 400) if is_redirect(s)] == [301, 302, 303, 307, 308]
