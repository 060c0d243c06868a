"""The documentation is tested against the code it describes."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_configuration_reference_is_generated_from_the_code() -> None:
    generated = runpy.run_path(str(ROOT / "docs/generate_configuration.py"))["page"]()
    assert (ROOT / "docs/configuration.md").read_text() == generated, (
        "run: python docs/generate_configuration.py"
    )


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
