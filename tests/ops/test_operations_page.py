"""What docs/operations.md tells an operator to write and to type works."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ops.helm_binary import helm
from ops.rendered_chart import render

from gateway.config import parse
from retrain.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
BLOCKS = re.findall(r"```yaml\n# ([\w.]+)\n(.*?)```", PAGE, re.DOTALL)


def blocks(name: str) -> list[str]:
    return [text for title, text in BLOCKS if title == name]


def test_every_yaml_block_is_of_a_kind_that_is_tested() -> None:
    assert len(BLOCKS) == PAGE.count("```yaml")
    assert {title for title, _ in BLOCKS} == {"values.yaml", "retort.yaml", "prometheus.yml"}


@pytest.mark.parametrize("text", blocks("values.yaml"))
def test_values_are_accepted_by_the_chart(text: str, tmp_path: Path) -> None:
    try:
        program = helm()
    except RuntimeError as error:
        pytest.skip(str(error))
    path = tmp_path / "values.yaml"
    path.write_text(text)
    parse(render(program, path).config())


@pytest.mark.parametrize("text", blocks("retort.yaml"))
def test_configuration_is_accepted_by_the_gateway(text: str) -> None:
    assert parse(text).tasks


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize("text", blocks("prometheus.yml"))
def test_scrape_configuration_is_accepted_by_prometheus(text: str, tmp_path: Path) -> None:
    config = yaml.safe_load(text)
    config["rule_files"] = [str(ROOT / "dashboards/rules.yaml")]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"(?:`|-- |bin/|\* )retort ((?:queue )?[a-z]+)", PAGE))
    assert {"nightly", "rollback", "promote", "bundles", "queue counts"} <= commands
    for command in sorted(commands):
        with pytest.raises(SystemExit) as left:
            main([*command.split(), "--help"])
        assert left.value.code == 0, command
    capsys.readouterr()


def test_panels_the_page_names_are_on_a_dashboard() -> None:
    boards = "".join(path.read_text() for path in (ROOT / "dashboards").glob("*.json"))
    table = re.findall(r"(?m)^\| [^|]+\? \| (.+) \|$", PAGE)
    assert len(table) > 5
    for names in table:
        for name in re.findall(r"\*([^*]+)\*", names):
            assert name in boards, name
