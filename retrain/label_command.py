"""`retort label`: the command line of `retrain.label`."""

import argparse
import hashlib
import os
import sys
from pathlib import Path

from gateway.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", type=Path, help="JSON lines (.gz accepted) or plain text lines")
    parser.add_argument("--system", type=Path, metavar="FILE", help="the teacher's prompt")
    parser.add_argument("--model", help="model to ask, in place of teacher.model")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="negative: the model's own (default: 0)"
    )
    parser.add_argument("--max-tokens", type=int, help="longest answer")
    parser.add_argument("--json", action="store_true", help="ask for a JSON object")
    parser.add_argument(
        "--logprobs", type=int, metavar="K", help="ask for the K likeliest alternatives of a token"
    )
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="the inputs are made up: they teach, but prove nothing of a student",
    )
    parser.add_argument("--concurrency", type=int, default=8, help="calls at once (default: 8)")
    parser.add_argument("--max-usd", type=float, help="stop when this much is spent")
    parser.add_argument("--limit", type=int, help="only the first so many inputs")
    parser.add_argument("--dry-run", action="store_true", help="say what it would do and cost")
    parser.add_argument(
        "--batch", action="store_true", help="through the Batch API: cheaper, within a day"
    )
    parser.add_argument(
        "--batch-price",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="what a batched call costs of the ordinary price (default: 0.5)",
    )


def label(args: argparse.Namespace) -> int:
    from gateway.app import make_chain
    from gateway.config import load
    from gateway.lane import output_spec
    from gateway.money.prices import PriceBook
    from gateway.secret import secret
    from gateway.storage.store import Store
    from retrain.label import Labelling
    from retrain.label import label as run
    from retrain.label_batch import BatchApi, label_in_batches
    from retrain.label_inputs import Asking, read_inputs

    config = load(args.config)
    task = config.task(args.task)
    model = args.model or config.teacher.model
    if model is None:
        raise ConfigError("teacher.model is not set: say which model to ask with --model")
    if not task.store_payloads:
        raise ConfigError(f"tasks.{task.name}.store_payloads is false: labels cannot be kept")
    asking = Asking(
        model=model,
        system=None if args.system is None else _prompt(args.system),
        temperature=None if args.temperature < 0 else args.temperature,
        max_tokens=args.max_tokens,
        json=args.json,
        logprobs=args.logprobs,
    )
    inputs = read_inputs(args.inputs, asking)[: args.limit]
    prices = PriceBook(config)
    prices.open()
    with Store.open(config.database_url, config.state / "spool", config.store.commit_ms) as store:
        labelling = Labelling(
            config=config,
            task=task,
            store=store,
            prices=prices,
            spec=output_spec(task.output),
            real=not args.synthetic,
            concurrency=max(1, args.concurrency),
            price_share=args.batch_price if args.batch else 1.0,
            max_usd=args.max_usd,
        )
        estimate = labelling.estimate(labelling.unknown(inputs))
        cost = "of unknown price" if estimate.usd is None else f"about ${estimate.usd:.2f}"
        print(
            f"{estimate.inputs:,} of {len(inputs):,} inputs are new: {cost}"
            f" (about {estimate.prompt_tokens:,} tokens in, {estimate.answer_tokens:,} out)"
        )
        if args.dry_run:
            return 0
        if args.max_usd is not None and estimate.usd is None:
            raise ConfigError(
                f"no price is known for {model}, so --max-usd cannot be kept: set teacher.price"
            )
        if args.batch:
            key = secret("teacher.api_key_env", config.teacher.api_key_env)
            api = BatchApi(base_url=config.teacher.base_url.rstrip("/"), key=key)
            name = hashlib.sha256(f"{task.name} {model}".encode()).hexdigest()[:12]
            state = config.state / "batches" / f"{name}.json"
            tally = label_in_batches(labelling, api, inputs, state, show=True)
        else:
            # the pauses and repeats are this command's own
            section = config.teacher.model_copy(update={"retries": 0, "max_concurrency": None})
            tally = run(labelling, make_chain(section, pass_key=False), inputs, show=True)
    spent = "unknown: some calls have no price" if tally.usd is None else f"${tally.usd:.4f}"
    print(
        f"labelled {tally.labelled:,} ({tally.invalid:,} against the output rules), refused"
        f" {tally.refused:,}, failed {tally.failed:,}, left {tally.left:,}; spent {spent}"
    )
    for failure in tally.failures[:3]:
        print(f"  {failure}", file=sys.stderr)
    if tally.why is not None:
        print(f"stopped: {tally.why}; start it again to go on", file=sys.stderr)
    return 0 if tally.why is None and not tally.failed and not tally.left else 1


def _prompt(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{os.fspath(path)}: cannot be read ({error})") from None
    if not text:
        raise ConfigError(f"{os.fspath(path)}: is empty")
    return text
