"""Which Prefect server is asked, and what is said when it does not answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.core.errors import UserError, first_line, without_password
from flows.server import AUTHENTICATION, _bypass_proxies, _check_home, api_url


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
        ("http://h/ answered x@y", "http://h/ answered x@y"),
        ("403 for https://h/f?id=1&X-Amz-Signature=abc%20&x=2", "403 for https://h/f?id=1&X-Amz-Signature=...&x=2"),
        ("wrong: ssh://me:p%40w@h/srv, s3://k:s@b", "wrong: ssh://h/srv, s3://b"),
    ],
)
def test_a_password_in_an_address_is_never_shown(given: str, shown: str) -> None:
    assert without_password(given) == shown
    assert str(UserError(given)) == shown


def test_an_error_is_cut_after_its_passwords_are_left_out() -> None:
    assert "secret" not in first_line(ValueError(f"{'x' * 480} http://user:secret@host/"))


def test_the_password_of_prefect_s_address_is_given_to_prefect_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHENTICATION, "x")  # so that it is put back at the end
    monkeypatch.delenv(AUTHENTICATION)
    assert api_url("https://me:p%40w@prefect.example.org/api") == "https://prefect.example.org/api"
    assert os.environ[AUTHENTICATION] == "me:p@w"


@pytest.mark.parametrize("home", ["file", "file/below", "/proc/none"])
def test_a_home_that_prefect_cannot_use_is_named_before_prefect_is_imported(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", home)
    with pytest.raises(UserError, match=f"PREFECT_HOME {home}: no folder can be there: "):
        _check_home()
    monkeypatch.setenv("PREFECT_HOME", "new/home")
    _check_home()
    assert (tmp_path / "new/home").stat().st_mode & 0o077 == 0
