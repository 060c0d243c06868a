"""The price book: what a model costs, from the configuration or from a list of prices.

The list is the package genai-prices. It is read once at start; looking a model up in it takes
0.2 ms, so what was found is kept, for an hour: list prices may depend on date and time of day.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gateway.config import Config, Price
from gateway.money.pricing import Usage, cost_usd
from gateway.storage.tables import utcnow

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot

logger = logging.getLogger(__name__)

#: models remembered; their names come from outside
_MANY = 1000
#: our prices by the list's names
_NAMES = {
    "input_usd": "input_mtok",
    "output_usd": "output_mtok",
    "cached_input_usd": "cache_read_mtok",
    "cache_write_usd": "cache_write_mtok",
    "reasoning_usd": "output_reasoning_mtok",
    "audio_input_usd": "input_audio_mtok",
    "audio_output_usd": "output_audio_mtok",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPrice:
    """A model's price in the list; ``steps`` say above how many prompt tokens which one holds for
    the whole call, from the fewest to the most."""

    steps: tuple[tuple[int, Price], ...]

    def of(self, prompt_tokens: int) -> Price:
        found = self.steps[0][1]
        for above, price in self.steps[1:]:
            if prompt_tokens > above:
                found = price
        return found


class PriceBook:
    """Costs of calls in dollars, None where they are unknown; names what is missing once in the
    log. Before ``open`` it knows what is configured."""

    def __init__(self, config: Config, now: Callable[[], datetime] = utcnow) -> None:
        self._config = config
        self._now = now
        self._list: DataSnapshot | None = None
        self._providers: dict[str, str | None] = {}
        self._found: dict[tuple[str, str, str], ListPrice | None] = {}
        self._hour: datetime | None = None
        self._named: set[str] = set()

    def open(self) -> None:
        """Read the list. Takes a third of a second: not on the event loop."""
        if self._config.pricing.use_list:
            from genai_prices.data_snapshot import get_snapshot

            self._list = get_snapshot()

    def student_usd(self, usage: Usage | None) -> float | None:
        """A student paid by the hour costs nothing more for one request more."""
        price = self._config.student.price
        return 0.0 if price.gpu_hour_usd is not None else cost_usd(price, usage)

    def teacher_usd(
        self,
        usage: Usage | None,
        *models: str | None,
        own: Price | None = None,
        base_url: str | None = None,
    ) -> float | None:
        """Of a call for a task. ``models``: the name it answered under, the one asked for. ``own``
        and ``base_url`` are of another teacher than the first, where one answered."""
        own = self._config.teacher.price if own is None else own
        if own.input_usd is not None:
            return cost_usd(own, usage)
        return self._by_name(usage, models, base_url)

    def unclaimed_usd(self, usage: Usage | None, model: str | None) -> float | None:
        """Of a call that no task claims. It may be to any model, an embedding one perhaps, so the
        teacher's own price holds only where it is the teacher's model."""
        teacher = self._config.teacher
        if model is not None and model == teacher.model and teacher.price.input_usd is not None:
            return cost_usd(teacher.price, usage)
        return self._by_name(usage, (model,))

    def budgeted_usd(self, usage: Usage | None, model: str | None) -> float | None:
        """What budgets are charged for a call that no task claims: where its own price is not
        known, the teacher's, at which it was let in."""
        known = self.unclaimed_usd(usage, model)
        return self.teacher_usd(usage, model) if known is None else known

    def lists(self, base_url: str) -> bool:
        """Whether the list has prices of that server."""
        return self._provider(base_url) is not None

    def _by_name(
        self, usage: Usage | None, models: tuple[str | None, ...], base_url: str | None = None
    ) -> float | None:
        if usage is None:
            return None
        # an upstream may name itself anything, also a list
        names = [model for model in models if isinstance(model, str)]
        provider = self._provider(base_url or self._config.teacher.base_url)
        for name in names:
            if name in self._config.pricing.models:
                return cost_usd(self._config.pricing.models[name], usage)
        for name in names:
            listed = None if provider is None else self._look_up(provider, name, usage.tier)
            if listed is not None:
                return cost_usd(listed.of(usage.prompt), usage)
        self._name(names[0] if names else "?", usage.tier)
        return None

    def _provider(self, base_url: str) -> str | None:
        """Whose list prices hold there. None for a server of one's own: what others charge for the
        same model is not its price."""
        if self._list is None:
            return None
        if base_url not in self._providers:
            teacher = self._config.teacher
            name = teacher.provider if base_url == teacher.base_url else None
            try:
                found = self._list.find_provider(None, name, None if name else base_url)
            except LookupError:
                self._providers[base_url] = None
            else:
                self._providers[base_url] = found.id
        return self._providers[base_url]

    def _look_up(self, provider: str, model: str, tier: str) -> ListPrice | None:
        now = self._now()
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour != self._hour or len(self._found) >= _MANY:
            self._found.clear()
            self._hour = hour
        key = (provider, model, tier)
        if key not in self._found:
            assert self._list is not None
            self._found[key] = _listed(self._list, provider, model, tier, now)
        return self._found[key]

    def _name(self, model: str, tier: str) -> None:
        what = f"{model} ({tier})" if tier else model
        if what not in self._named and len(self._named) < _MANY:
            self._named.add(what)
            logger.warning("price unknown", extra={"model": what, "see": "pricing.models"})


def _listed(
    snapshot: "DataSnapshot", provider: str, model: str, tier: str, now: datetime
) -> ListPrice | None:
    try:
        _, info = snapshot.find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    context = {"service_tier": tier} if tier else None
    if context is not None and not any(
        variant.when == context and (variant.constraint is None or variant.constraint.active(now))
        for variant in info.price_variants or ()
    ):
        return None
    prices = info.get_prices(now, context)
    values = {name: getattr(prices, theirs) for name, theirs in _NAMES.items()}
    if values["input_usd"] is None:
        return None
    steps = [step for value in values.values() for step in getattr(value, "tiers", ())]
    starts = sorted({0, *(step.start for step in steps)})
    return ListPrice(steps=tuple((start, _price(values, start)) for start in starts))


def _price(values: dict[str, Any], above: int) -> Price:
    """What holds for a call with just more than ``above`` prompt tokens."""
    return Price(**{name: _amount(value, above) for name, value in values.items()})


def _amount(value: Any, above: int) -> float | None:
    tiers = getattr(value, "tiers", None)
    if tiers is None:
        return None if value is None else float(value)
    amount = value.base
    for step in tiers:  # they are in order
        if above >= step.start:
            amount = step.price
    return float(amount)
