"""Which Prefect server is asked, and what is said when it does not answer."""

from __future__ import annotations

import os

import pytest

from components.core.errors import UserError, without_password
from flows.server import _bypass_proxies, api_url


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("http://127.0.0.1:4200/api/", "http://127.0.0.1:4200/api"),
        ("http://127.0.0.1:4200", "http://127.0.0.1:4200/api"),
        ("http://127.0.0.1:4200/", "http://127.0.0.1:4200/api"),
        (" https://prefect.example.org/team/api ", "https://prefect.example.org/team/api"),
    ],
)
def test_an_address_is_understood_with_a_slash_at_its_end_and_without_api(given: str, asked: str) -> None:
    assert api_url(given) == asked


@pytest.mark.parametrize("given", ["127.0.0.1:4200", "prefect", "ftp://somewhere/api", "http://"])
def test_what_is_no_address_is_one_line_with_an_example(given: str) -> None:
    with pytest.raises(UserError, match="expected an address such as http"):
        api_url(given)


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    for _ in range(2):
        _bypass_proxies()
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert os.environ["no_proxy"] == "127.0.0.1,localhost"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://me:secret@mlflow.example.org/x?y=1", "https://mlflow.example.org/x?y=1"),
        ("postgresql+psycopg2://user:p@ss@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("could not reach http://a:b@h:1/: refused", "could not reach http://h:1/: refused"),
    ],
)
def test_a_password_in_an_address_is_never_shown(given: str, shown: str) -> None:
    assert without_password(given) == shown
