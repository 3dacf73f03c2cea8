"""What services read from their environment, and how they refuse what makes no sense."""

from __future__ import annotations

import pytest

from muster.domain.errors import ConfigurationError
from muster.rpc import settings


def test_numbers_have_defaults_and_bounds() -> None:
    assert settings.number({}, "K", 7, 1, 10) == 7
    assert settings.number({"K": ""}, "K", 7, 1, 10) == 7
    assert settings.number({"K": "2.5"}, "K", 7, 1, 10) == 2.5
    for text in ("0", "11", "nan", "inf", "many"):
        with pytest.raises(ConfigurationError, match="a number from 1 to 10"):
            settings.number({"K": text}, "K", 7, 1, 10)


def test_flags_are_0_or_1() -> None:
    assert not settings.flag({}, "K")
    assert not settings.flag({"K": "0"}, "K")
    assert settings.flag({"K": "1"}, "K")
    with pytest.raises(ConfigurationError, match="0 or 1"):
        settings.flag({"K": "yes"}, "K")


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:80", "host.example:65535"])
def test_where_to_listen(text: str) -> None:
    assert settings.address({"K": text}, "K", "d:1") == text
    assert settings.address({}, "K", "d:1") == "d:1"


@pytest.mark.parametrize("text", ["host", ":80", "h:", "h:65536", "h:-1", "h:8o", "h:²", "h:٣"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="K="):
        settings.address({"K": text}, "K", "d:1")
    with pytest.raises(ConfigurationError, match="K="):
        settings.addresses({"K": f"a:1,{text}"}, "K")


def test_whom_to_dial() -> None:
    assert settings.addresses({"K": " a:1 ,, b:2"}, "K") == ("a:1", "b:2")
    assert settings.addresses({}, "K", optional=True) == ()
    for text in ("", " , ", "a:0"):
        with pytest.raises(ConfigurationError, match="host:port"):
            settings.addresses({"K": text}, "K")
