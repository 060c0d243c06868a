"""The student's engine, in vLLM's own metrics (names of vLLM 0.32). vLLM labels them with the base
model's name: what single adapters do is in the overview, from the gateway's side."""

from grafana import Json, Panel, Query, Row, Variable, dashboard
from queries import of as chosen
from queries import quantile, share, total

MODEL = 'model_name=~"$model"'


def of(metric: str) -> str:
    return chosen(metric, MODEL, task=False)


def summed(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({of(metric)})"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    return total(metric, MODEL, *matchers, by=by, task=False)


def quantiles(metric: str) -> list[Query]:
    return [
        Query(expr=quantile(q, metric, MODEL, task=False), legend=f"p{q * 100:g}")
        for q in (0.5, 0.95, 0.99)
    ]


def load() -> Row:
    return Row(
        title="Load",
        panels=[
            Panel(
                title="Requests in the engine",
                description="Running in a batch, and waiting for a place in one.",
                queries=[
                    Query(expr=summed("vllm:num_requests_running"), legend="running"),
                    Query(expr=summed("vllm:num_requests_waiting"), legend="waiting"),
                ],
                unit="short",
                stack=True,
            ),
            Panel(
                title="Waiting, by reason",
                description="`deferred`: the request's adapter has no slot (raise --max-loras); "
                "`capacity`: the engine is full.",
                queries=[
                    Query(
                        expr=summed("vllm:num_requests_waiting_by_reason", by="reason"),
                        legend="{{reason}}",
                    )
                ],
                unit="short",
                stack=True,
            ),
            Panel(
                title="Requests finished",
                description="Per second by finish reason. Many `length`: drafts hit max_tokens and "
                "are thrown away as invalid.",
                queries=[
                    Query(
                        expr=rate("vllm:request_success_total", by="finished_reason"),
                        legend="{{finished_reason}}",
                    )
                ],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Tokens",
                description="Prompt tokens read and tokens generated per second.",
                queries=[
                    Query(expr=rate("vllm:prompt_tokens_total"), legend="prompt"),
                    Query(expr=rate("vllm:generation_tokens_total"), legend="generated"),
                ],
                unit="short",
            ),
            Panel(
                title="Requests refused",
                description="Per second, by reason: the engine's own queue limit was reached.",
                queries=[
                    Query(
                        expr=rate("vllm:admission_rejections_total", by="reason"),
                        legend="{{reason}}",
                    )
                ],
                unit="reqps",
            ),
            Panel(
                title="Preemptions",
                description="Requests per second that lost their place for want of KV cache.",
                queries=[Query(expr=rate("vllm:num_preemptions_total"), legend="preempted")],
                unit="reqps",
            ),
        ],
    )


def cache() -> Row:
    return Row(
        title="Cache",
        panels=[
            Panel(
                title="KV cache in use",
                description="Near 100 %: fewer requests fit into a batch, then preemptions.",
                queries=[
                    Query(
                        expr=f"max by (instance) ({of('vllm:kv_cache_usage_perc')})",
                        legend="{{instance}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
                width=12,
            ),
            Panel(
                title="Prefix cache hits",
                description="Share of prompt tokens found in the prefix cache. Each new adapter "
                "starts cold.",
                queries=[
                    Query(
                        expr=share(
                            rate("vllm:prefix_cache_hits_total"),
                            rate("vllm:prefix_cache_queries_total"),
                        ),
                        legend="hits",
                    )
                ],
                unit="percentunit",
                maximum=1,
                width=12,
            ),
        ],
    )


def latency() -> Row:
    return Row(
        title="Latency inside the engine",
        panels=[
            Panel(title=title, description=description, queries=quantiles(metric), unit="s")
            for title, description, metric in (
                (
                    "Whole request",
                    "From arrival in the engine to the last token.",
                    "vllm:e2e_request_latency_seconds",
                ),
                (
                    "Time to first token",
                    "Queue and prompt together.",
                    "vllm:time_to_first_token_seconds",
                ),
                (
                    "Time between tokens",
                    "How fast answers grow once they began.",
                    "vllm:inter_token_latency_seconds",
                ),
                (
                    "In the queue",
                    "Waiting before the first batch. Grows first when the student is too small.",
                    "vllm:request_queue_time_seconds",
                ),
                (
                    "Reading the prompt",
                    "Prefill.",
                    "vllm:request_prefill_time_seconds",
                ),
                (
                    "Writing the answer",
                    "Decode.",
                    "vllm:request_decode_time_seconds",
                ),
            )
        ],
    )


def student() -> Json:
    known = '__name__=~"vllm[:_]num_requests_running"'
    return dashboard(
        uid="retort-student",
        title="Retort / Student engine",
        description="The vLLM server that runs the students, in its own metrics.",
        variables=[
            Variable(name="job", label="Job", query=f"label_values({{{known}}}, job)"),
            Variable(
                name="instance",
                label="Instance",
                query=f'label_values({{{known}, job=~"$job"}}, instance)',
            ),
            Variable(
                name="model",
                label="Model",
                query=f'label_values({{{known}, job=~"$job"}}, model_name)',
            ),
        ],
        rows=[load(), cache(), latency()],
    )
