"""docs/metrics.md says what gateway/metrics.py declares."""

import re
from pathlib import Path

from ops.known_metrics import gateway_families

from gateway.storage.tables import State
from router.decision import Reason, Route

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
ROWS = {
    name: (kind, tuple(part.strip() for part in labels.split(",") if part.strip()), meaning)
    for name, kind, labels, meaning in re.findall(
        r"(?m)^\| `(retort_\w+)` \| (\w+) \|([^|]*)\| (.+) \|$", PAGE
    )
}


def label_values(label: str) -> set[str]:
    (row,) = re.findall(rf"(?m)^\| {label} \| (.+) \|$", PAGE)
    return set(re.findall(r"`([^`]+)`", row))


def test_every_metric_is_on_the_page_and_no_other() -> None:
    assert list(ROWS) and set(ROWS) == {family.name for family in gateway_families()}


def test_types_and_labels_are_right() -> None:
    for family in gateway_families():
        kind, labels, meaning = ROWS[family.name]
        assert (kind, labels) == (family.kind, family.labels), family.name
        assert len(meaning) > 3 or family.name.endswith("_info")


def test_every_label_is_explained() -> None:
    used = {label for family in gateway_families() for label in family.labels}
    table = PAGE.split("## Labels")[1]
    explained = {
        name for row in re.findall(r"(?m)^\| ([a-z, ]+) \|", table) for name in row.split(", ")
    }
    assert used <= explained


def test_closed_sets_are_complete() -> None:
    assert label_values("route") == set(Route)
    assert label_values("reason") == set(Reason)
    assert label_values("state") == set(State)


def test_metrics_keep_to_the_naming_rules() -> None:
    for family in gateway_families():
        assert family.name.startswith("retort_")
        assert family.help.endswith(".") or family.name == "retort_build_info"
        if family.kind == "histogram":
            assert family.name.endswith(("_seconds", "_score", "_p_value"))
        assert not {"user", "id", "prompt", "model"} & set(family.labels)
