"""report.html: one file without scripts, fonts or links to load, for light and dark screens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from retrain.demo import charts
from retrain.demo.charts import Bar
from retrain.demo.table import Figures, Played, rows
from router.threshold import NEVER

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fbfbf9; --card: #fff;
  --line: #dfe3e8; --k0: #2f6fb5; --k1: #d9822b; --k2: #3c9a6a; --k3: #b5485d; --k4: #7b62b3;
  --k5: #8a7a3c; --k6: #4aa6b5; --k7: #a85fa0; --k8: #6d7a88; --k9: #c2a23a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b3; --paper: #14181e;
  --card: #1b212a; --line: #323b47; --k0: #6aa5e8; --k1: #eda35a; --k2: #67c295; --k3: #e27d90;
  --k4: #a994dd; --k5: #bfae6a; --k6: #78ccd9; --k7: #d290ca; --k8: #9aa7b5; --k9: #e0c665; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p, li { max-width: 75ch } .soft { color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap } th:first-child, td:first-child { text-align: left }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: 1rem } figure { margin: 0; padding: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px } figcaption { margin-bottom: .4rem }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--ink) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  overflow-x: auto; font-size: .85rem }
.grid { stroke: var(--line) } .axis { stroke: var(--soft) } .whisker { stroke: var(--ink);
  stroke-width: 1.5 } .mark { stroke: var(--ink); stroke-dasharray: 4 3 }
.curve { fill: none; stroke-width: 2 }
""" + "".join(f".k{n} {{ fill: var(--k{n}) }} .s{n} {{ stroke: var(--k{n}) }}\n" for n in range(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What a night said: its verdict and why, what is certified from then on, and the threshold
    (1.01: never)."""

    title: str
    verdict: str
    reasons: tuple[str, ...]
    certificate: tuple[str, ...]
    threshold: float = NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything the page tells. ``played`` has one entry per column; ``config`` is the YAML."""

    about: str
    columns: tuple[Figures, ...]
    played: Mapping[str, Sequence[Played]]
    nights: tuple[Night, ...]
    facts: tuple[str, ...]
    config: str


def page(story: Story) -> str:
    """The whole HTML document."""
    nights = "".join(
        f"<h3>{escape(night.title)}: {escape(night.verdict)}</h3><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in (*night.reasons, *night.certificate))
        + "</ul>"
        for night in story.nights
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in story.facts)
    figures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
        for title, svg in _charts(story)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Retort demo</title><style>{STYLE}</style></head><body>"
        f'<h1>Retort demo</h1><p class="soft">{escape(story.about)}</p>'
        f'<div class="scroll">{_table(story.columns)}</div>'
        '<p class="soft">Shares with exact 95 % intervals. Agreement counts an answer of the '
        "teacher as agreeing with the teacher.</p>"
        f'<div class="charts">{figures}</div>'
        f"<h2>What the nights decided</h2>{nights}"
        f"<h2>How it was run</h2><ul>{facts}</ul>"
        f"<h2>retort.yaml</h2><pre>{escape(story.config)}</pre></body></html>\n"
    )


def _table(columns: Sequence[Figures]) -> str:
    head, *body = rows(columns)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in body
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _charts(story: Story) -> list[tuple[str, str]]:
    drawn = [
        ("Coverage and agreement, with 95 % intervals", _shares(story.columns)),
        ("Who answered, and why", charts.mix({c.name: c.reasons for c in story.columns})),
    ]
    rounds = [c.name for c in story.columns if c.asked_student]
    for name, night in zip(rounds, story.nights, strict=False):
        drawn.append((f"Trust in the student's drafts, {name}", _scores(story, name, night)))
    longest = max(column.p95_s for column in story.columns) * 1.5
    latencies = {
        name: [item.outcome.latency_s for item in items if item.outcome.error is None]
        for name, items in story.played.items()
    }
    drawn.append(
        ("Latency", charts.curves(latencies, axis="answered within", longest=longest)),
    )
    if all(column.usd_per_1000 is not None for column in story.columns):
        drawn.append(("Cost, audits included", _dollars(story.columns)))
    return drawn


def _shares(columns: Sequence[Figures]) -> str:
    items = []
    for column in columns:
        for series, share in (
            ("coverage", column.coverage),
            ("agreement, all", column.agreement),
            ("agreement, student's", column.agreement_served),
        ):
            if share is not None:
                low, high = share.interval
                label = f"{100 * share.value:.0f}"
                bar = Bar(
                    group=column.name,
                    series=series,
                    value=share.value,
                    low=low,
                    high=high,
                    label=label,
                )
                items.append(bar)
    return charts.bars(items, axis="share of the requests")


def _scores(story: Story, name: str, night: Night) -> str:
    drafts = [item for item in story.played[name] if item.loss is not None]
    series = {
        "agrees with the teacher": [i.score for i in drafts if i.score is not None and not i.loss],
        "disagrees": [i.score for i in drafts if i.score is not None and i.loss],
    }
    return charts.histogram(series, axis="score of the draft (odds)", mark=night.threshold)


def _dollars(columns: Sequence[Figures]) -> str:
    most = max(column.usd_per_1000 or 0.0 for column in columns) or 1.0
    items = [
        Bar(
            group=column.name,
            series="dollars",
            value=column.usd_per_1000 or 0.0,
            label=f"${column.usd_per_1000:.2f}",
        )
        for column in columns
    ]
    return charts.bars(items, axis="dollars per 1,000 requests", top=1.1 * most, percent=False)
