"""Whatever stands in params.yaml, it is settings or one line per mistake: never a traceback, never a hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import UserError
from components.core.params import load_settings

GOOD = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
SEED_LINE = GOOD[: GOOD.index("seed: 42")].count("\n") + 1


def load(tmp_path: Path, text: str | bytes) -> str:
    """The mistakes of a file with that text; empty when it is good."""
    file = tmp_path / "p.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load_settings(file)
    except UserError as error:
        return str(error).replace(str(file), "p.yaml")
    return ""


def set_value(key: str, value: str) -> str:
    """The good file with another value for a key that occurs once."""
    (line,) = [line for line in GOOD.splitlines() if line.strip().startswith(f"{key}: ")]
    return GOOD.replace(line, f"{line.partition(':')[0]}: {value}")


@pytest.mark.parametrize(
    "key", ["learning_rate", "update_ratio", "margin", "clip_norm", "threshold", "diversity_decay"]
)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
def test_numbers_are_finite(tmp_path: Path, key: str, value: str) -> None:
    mistake = load(tmp_path, set_value(key, value))
    assert f".{key}: " in mistake
    assert mistake.count("\n") == 0


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("9" * 5000, "p.yaml: not usable YAML: "),
        ("[" * 1500, "p.yaml: not usable YAML: nested too deeply"),
        ("[" * 3000 + "]" * 3000, "p.yaml: not usable YAML: nested too deeply"),
        ("2020-02-31", "p.yaml: not usable YAML: "),
        ("2020-01-01", "p.yaml: finetune.seed: datetime.date(2020, 1, 1): input should be a valid integer"),
        ("!!python/object/apply:os.system ['x']", f"p.yaml: line {SEED_LINE}: not valid YAML: "),
        ("!!set {a}", "p.yaml: finetune.seed: {'a'}: input should be a valid integer"),
        ("!!binary aGVsbG8=", "p.yaml: finetune.seed: b'hello': input should be a valid integer"),
        ('"' + "x" * 10_000 + '"', "p.yaml: finetune.seed: 'xxx"),
        (r'"\x1b[31m\n"', r"p.yaml: finetune.seed: '\\x1b[31m\\n': input should be a valid integer"),
        ("&a [*a]", "p.yaml: finetune.seed: input should be a valid integer"),
    ],
)
def test_odd_values_are_one_short_line(tmp_path: Path, value: str, line: str) -> None:
    mistake = load(tmp_path, GOOD.replace("seed: 42", f"seed: {value}"))
    assert mistake.startswith(line.replace("\\\\", "\\")), mistake
    assert mistake.count("\n") == 0
    assert len(mistake) < 300


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "p.yaml: holds NoneType"),
        ("3", "p.yaml: holds int"),
        (b"\xff\xfe\x00", "p.yaml: not UTF-8 text (byte 0)"),
        (GOOD + "\0", "p.yaml: not valid YAML: "),
        (GOOD + "\nexperiment: again\n", "p.yaml: line "),
        (GOOD + "\n---\na: 1\n", "p.yaml: line "),
        (GOOD + "\n2020-01-01: x\n", "p.yaml: "),
    ],
)
def test_a_file_that_is_no_settings_is_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    mistake = load(tmp_path, text)
    assert mistake.startswith(line), mistake
    assert mistake.count("\n") == 0


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()) == ""


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("  name: iterit", "  name: a/b", "register.name"),
        ("  name: iterit", "  name: 'a:b'", "register.name"),
        ("  name: iterit", "  name: it's", "register.name"),
        ("alias: latest_iterit", "alias: Latest", "register.alias"),
        ("alias: latest_iterit", "alias: v1", "register.alias"),
        ("alias: latest_iterit", "alias: champion", "register.alias"),
        ("alias: latest_iterit", "alias: previous_champion", "register.alias"),
        ("alias: latest_iterit", "alias: challenger", "register.alias"),
        ("experiment: iterit", r'experiment: "a\nb"', "experiment"),
        ("experiment: iterit", "experiment: ' '", "experiment"),
        ("deepspeed: zero0", "deepspeed: ../../secrets", "finetune.deepspeed"),
    ],
)
def test_names_that_a_service_would_refuse_after_the_training_are_refused_before_it(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    assert old in GOOD
    mistake = load(tmp_path, GOOD.replace(old, new))
    assert mistake.startswith(f"p.yaml: {key}: "), mistake
    assert mistake.count("\n") == 0
