"""`retort`: one command, one subcommand per step of the journey.

Exit codes: 0 done; 1 something is wrong, said in one line; 2 the command line itself is wrong;
130 interrupted. Nothing heavy is imported before the subcommand that needs it runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import RetortError

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.storage.store import Store

Command = Callable[[argparse.Namespace], int]

#: as in retrain/queue_formats.py, which takes longer to import than --help may
FORMATS = ("chat", "dpo", "argilla", "label-studio", "csv")
ANNOTATED = ("argilla", "label-studio", "csv")

DESCRIPTION = """\
Distil a frontier model into a small student and serve it safely.

The journey: collect (`serve`), make a student (`nightly`, or `train`, `evaluate`, `promote` by
hand), serve it where it is certified, and retrain it every night. See it all happen
with `retort demo`; find out what is missing with `retort doctor`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; never shows a traceback for a known error."""
    args = _parser().parse_args(argv)
    command: Command = args.command
    try:
        return command(args)
    except RetortError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"retort: {args.name} needs the package {error.name}: pip install 'retort[train]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `retort queue export | head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until the exit
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retort",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"retort {version('retort')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, command: Command, help: str, *, config: bool = True, task: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(command=command, name=name)
        if config:
            _add_config(sub)
        if task:
            sub.add_argument("--task", help="name of the task; may be left out if there is one")
        return sub

    serve = add("serve", _serve, "run the gateway until it is told to stop")
    serve.add_argument("--host", help="address to bind, in place of server.host")
    serve.add_argument("--port", type=int, help="port to bind, in place of server.port; 0: any")

    demo = add("demo", _demo, "see the whole product work on this machine", config=False)
    from retrain.demo.options import add_options

    add_options(demo)

    student = add("student", _student, "install and run a CPU student server (vLLM)", config=False)
    student.add_argument("--home", type=Path, help="where to keep it (default: ~/.cache/retort)")
    student.add_argument("--port", type=int, default=8100, help="port to bind (default: 8100)")

    add(
        "train",
        _train,
        "harvest the queue, train a student on it and register it as a candidate",
        task=True,
    )
    evaluate = add(
        "evaluate",
        _evaluate,
        "ask a bundle's student the held-out requests and compare it with the teacher",
        task=True,
    )
    evaluate.add_argument("bundle", nargs="?", help="bundle id (default: the champion)")
    calibrate = add(
        "calibrate",
        _calibrate,
        "say what live traffic has certified, worked out anew from the ledger",
        task=True,
    )
    calibrate.add_argument("bundle", nargs="?", help="bundle id (default: the champion)")
    calibrate.add_argument(
        "--check",
        action="store_true",
        help="fail where the stored certificate is not, to the last bit, what the ledger says",
    )
    calibrate.add_argument("--json", action="store_true", help="as JSON")
    calibrate.add_argument(
        "--refit",
        action="store_true",
        help="fit the bundle's router anew on all evidence instead; makes a new candidate",
    )
    promote = add("promote", _promote, "make a bundle the champion of its task")
    promote.add_argument("bundle", help="bundle id (see `retort bundles`)")
    promote.add_argument("--why", default="by hand", help="kept in the bundle's history")
    rollback = add(
        "rollback", _rollback, "go back to the champion before, or to the teacher", task=True
    )
    rollback.add_argument("--why", default="by hand", help="kept in the bundle's history")
    nightly = add(
        "nightly",
        _nightly,
        "run the loop: harvest, train, evaluate, calibrate, promote on proof",
        task=True,
    )
    nightly.add_argument(
        "--force",
        action="store_true",
        help="train even with fewer new rows than nightly.min_new_rows",
    )
    nightly.add_argument(
        "--fresh", action="store_true", help="do not resume a night that did not finish"
    )
    review = add("review", _review, "look at a sample of the teacher's answers", task=True)
    review.add_argument(
        "--share", type=float, default=0.12, help="of every kind of answer (default: 0.12)"
    )
    review.add_argument("--limit", type=int, help="at most so many rows")
    review.add_argument(
        "--format", choices=ANNOTATED, help="write the sample for another tool, and ask nothing"
    )
    from retrain.label_command import add_options as add_label_options
    from retrain.label_command import label

    add_label_options(
        add(
            "label",
            label,
            "let the teacher answer raw inputs, as if they had been asked",
            task=True,
        )
    )
    from retrain.savings import add_options as add_savings_options
    from retrain.savings import savings

    add_savings_options(
        add(
            "savings",
            savings,
            "say what was paid and what the teacher alone would have cost",
            task=True,
        )
    )
    from retrain.replay_command import add_options as add_replay_options
    from retrain.replay_command import replay

    add_replay_options(
        add(
            "replay",
            replay,
            "draw what other thresholds, signals or bundles would have done with logged traffic",
            task=True,
        )
    )
    add("bundles", _bundles, "list the bundles and their states", task=True)
    _add_queue(commands)
    from retrain.keys_commands import add_keys

    add_keys(commands, _add_config)
    _add_feedback(commands)
    doctor = add("doctor", _doctor, "say what is missing to run, and how to get it", config=False)
    doctor.add_argument("--config", type=Path, help="configuration to check as well")
    add("check", _check, "print the configuration as it is understood")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("RETORT_CONFIG", "retort.yaml")),
        help="the YAML file (default: $RETORT_CONFIG, else retort.yaml)",
    )


def _add_queue(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    queue = commands.add_parser(
        "queue",
        help="look into the retraining queue, export it, import recorded traffic",
        description="The retraining queue: every request of a task that the teacher answered.",
    )
    actions = queue.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(
        name: str, command: Command, help: str, *, task: bool = True
    ) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(command=command, name=f"queue {name}")
        _add_config(sub)
        if task:
            sub.add_argument("--task", help="name of the task; may be left out if there is one")
        return sub

    add("counts", _queue_counts, "count the rows by state")
    rows = add("list", _queue_list, "list the newest rows")
    rows.add_argument("--state", help="only rows in this state")
    rows.add_argument("--reason", help="only rows with this reason, such as ood or unsure")
    rows.add_argument("--search", help="only rows whose prompt or answers hold this text")
    rows.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    show = add("show", _queue_show, "print one row whole, with its history", task=False)
    show.add_argument("id", help="request id, as in the x-request-id header")
    export = add("export", _queue_export, "write the rows to standard output, for another tool")
    export.add_argument("--state", help="only rows in this state")
    export.add_argument("--format", choices=FORMATS, default="chat", help="(default: chat)")
    load = add("import", _queue_import, "take recorded chats, or what people answered")
    load.add_argument("file", type=Path, help="JSON lines, .gz accepted; or an export with answers")
    load.add_argument(
        "--format",
        choices=("chat", *ANNOTATED),
        default="chat",
        help="chat: recorded chats become rows; else: answers become corrections (default: chat)",
    )
    about = add("clusters", _queue_clusters, "group the fallbacks by what they ask and cost")
    about.add_argument("--days", type=float, default=30.0, help="how far back (default: 30)")
    about.add_argument("--groups", type=int, help="how many groups (default: by the rows)")
    about.add_argument("--json", action="store_true", help="as JSON")
    requeue = add("requeue", _queue_requeue, "let the next night judge rejected rows again")
    requeue.add_argument("id", nargs="*", help="request ids (default: all that were rejected)")
    requeue.add_argument("--reason", help="only rows rejected for this, such as schema")
    erase = add("erase", _queue_erase, "remove the text of rows for good", task=False)
    erase.add_argument("id", nargs="*", help="request ids")
    erase.add_argument("--user", help="all requests of this end user (`user`, or in the metadata)")


def _add_feedback(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    feedback = commands.add_parser(
        "feedback",
        help="read what clients said of answers",
        description="Feedback of clients, kept by POST /v1/feedback.",
    )
    actions = feedback.add_subparsers(title="actions", metavar="ACTION", required=True)
    rows = actions.add_parser("list", help="list the newest", description="List the newest.")
    rows.set_defaults(command=_feedback_list, name="feedback list")
    _add_config(rows)
    rows.add_argument("--task", help="name of the task; may be left out if there is one")
    rows.add_argument("--limit", type=int, default=20, help="how many (default: 20)")


def _config(args: argparse.Namespace) -> "Config":
    from gateway.config import load

    return load(args.config)


def _store(config: "Config") -> "Store":
    from gateway.storage.store import Store

    return Store.open(config.database_url, config.state / "spool", config.store.commit_ms)


def _serve(args: argparse.Namespace) -> int:
    from gateway import logs
    from gateway.serve import serve

    logs.setup()
    config = _config(args)
    changes = {key: value for key in ("host", "port") if (value := getattr(args, key)) is not None}
    server = config.server.model_copy(update=changes)
    serve(config.model_copy(update={"server": server}))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from retrain.demo.run import demo

    return demo(args)


def _doctor(args: argparse.Namespace) -> int:
    from gateway.config import load
    from retrain.doctor import examine

    config = load(args.config) if args.config is not None else None
    state = config.state if config is not None else Path.home()
    missing = False
    for finding in examine(config, state):
        mark = {"ok": "ok     ", "wanting": "wanting", "missing": "MISSING"}[finding.state]
        print(f"{mark}  {finding.what}: {finding.detail}")
        missing |= finding.state == "missing"
    return 1 if missing else 0


def _check(args: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(_config(args).model_dump(mode="json"), sort_keys=False), end="")
    return 0


def _student(args: argparse.Namespace) -> int:
    import signal
    import threading

    from retrain.demo.options import DEFAULT_HOME
    from retrain.student_env import ensure_student_env
    from retrain.student_model import ensure_model
    from retrain.student_server import StudentServer

    home = (args.home or Path(os.environ.get("RETORT_HOME", DEFAULT_HOME))).expanduser()
    python, model = ensure_student_env(home), ensure_model(home)
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    with StudentServer(python, model, port=args.port, log=home / "student.log") as server:
        print(f"student.base_url: {server.base_url}\ntraining.base_model: {model}", flush=True)
        while not told_to_stop.wait(1.0):
            pass
    return 0


def _train(args: argparse.Namespace) -> int:
    from retrain import nightly
    from retrain.report import markdown

    config = _config(args)
    with _store(config) as store:
        report = nightly.run(
            config, config.task(args.task), store, force=True, promote=False, say=_say
        )
    print(markdown(report))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from retrain.by_hand import evaluate_bundle, sentences, shown

    config = _config(args)
    with _store(config) as store:
        found = evaluate_bundle(config, config.task(args.task), store, args.bundle)
    report = found.report
    print(f"{found.bundle} on {found.dataset}")
    print(f"agreement with the teacher {shown(report.agreement)}")
    print(f"drafts that obey the output rules {shown(report.valid)}")
    for name, share in report.per_field.items():
        print(f"  {name}: {shown(share)}")
    if report.student_gold is not None and report.teacher_gold is not None:
        print(f"gold accuracy: student {shown(report.student_gold)}")
        print(f"               teacher {shown(report.teacher_gold)}")
    print(*sentences(found.routing), sep="\n")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from retrain.calibrate_command import calibrate

    config = _config(args)
    with _store(config) as store:
        return calibrate(args, config, store)


def _promote(args: argparse.Namespace) -> int:
    from retrain.promote import promote_bundle

    config = _config(args)
    with _store(config) as store:
        promote_bundle(config, store, args.bundle, detail=args.why)
    print(f"champion: {args.bundle}")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from retrain.promote import rollback_task

    config = _config(args)
    with _store(config) as store:
        champion = rollback_task(config, store, config.task(args.task), detail=args.why)
    print(f"champion: {champion.id if champion is not None else 'none, the teacher answers'}")
    return 0


def _nightly(args: argparse.Namespace) -> int:
    from retrain import nightly
    from retrain.report import markdown

    config = _config(args)
    with _store(config) as store:
        report = nightly.run(
            config,
            config.task(args.task),
            store,
            force=args.force,
            resume=not args.fresh,
            say=_say,
        )
    print(markdown(report))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _bundles(args: argparse.Namespace) -> int:
    from gateway.storage.bundles import history

    config = _config(args)
    with _store(config) as store:
        for bundle in history(store, config.task(args.task).name):
            mark = "  tainted: made with rows erased since" if bundle.tainted else ""
            print(f"{bundle.at:%Y-%m-%d %H:%M}  {bundle.state:<9}  {bundle.id}{mark}")
    return 0


def _queue_counts(args: argparse.Namespace) -> int:
    from gateway.storage import exchanges

    config = _config(args)
    with _store(config) as store:
        for state, count in exchanges.counts(store, config.task(args.task).name).items():
            print(f"{count:>8}  {state}")
    return 0


def _queue_list(args: argparse.Namespace) -> int:
    from gateway.storage import exchanges

    config = _config(args)
    states = [args.state] if args.state else []
    with _store(config) as store:
        rows = exchanges.find(
            store,
            config.task(args.task).name,
            states=states,
            reason=args.reason,
            text=args.search,
            limit=args.limit,
        )
    for row in rows:
        prompt = " ".join(row.prompt.split())
        print(
            f"{row.id}  {row.at:%Y-%m-%d %H:%M:%S}  {row.state:<10}  {row.reason:<13}  {prompt:.80}"
        )
    return 0


def _queue_show(args: argparse.Namespace) -> int:
    import json

    from gateway.storage import exchanges
    from gateway.surfaces import feedback

    with _store(_config(args)) as store:
        row, events = exchanges.show(store, args.id)
        said = feedback.of_exchange(store, args.id)
    data = row.model_dump(mode="json")
    data["feedback"] = [one.model_dump(mode="json", exclude={"exchange_id"}) for one in said]
    data["events"] = [event.model_dump(mode="json", exclude={"exchange_id"}) for event in events]
    print(json.dumps(data, indent=2, ensure_ascii=False))
    return 0


def _feedback_list(args: argparse.Namespace) -> int:
    from gateway.surfaces import feedback

    config = _config(args)
    with _store(config) as store:
        for one in feedback.newest(store, config.task(args.task).name, args.limit):
            said = [one.rating, None if one.score is None else f"{one.score:g}"]
            said += [one.correction and f"correction: {one.correction}", one.comment]
            line = " | ".join(" ".join(part.split()) for part in said if part)
            print(f"{one.id}  {one.at:%Y-%m-%d %H:%M:%S}  {line:.120}")
    return 0


def _queue_export(args: argparse.Namespace) -> int:
    from gateway.storage import exchanges
    from retrain.queue_formats import written

    config = _config(args)
    states = [args.state] if args.state else []
    with _store(config) as store:
        rows = exchanges.answered(store, config.task(args.task).name, states)
        for line in written(rows, args.format):
            print(line)
    return 0


def _queue_clusters(args: argparse.Namespace) -> int:
    from retrain.clusters import show

    return show(args)


def _queue_requeue(args: argparse.Namespace) -> int:
    from gateway.storage import exchanges

    config = _config(args)
    with _store(config) as store:
        count = exchanges.requeue(store, config.task(args.task).name, args.id, args.reason)
    print(f"{count} rows wait for the next night")
    return 0


def _queue_import(args: argparse.Namespace) -> int:
    from retrain.traffic import import_traffic, read_traffic

    config = _config(args)
    if args.format != "chat":
        return _annotate(args, config)
    recorded = read_traffic(args.file)
    with _store(config) as store:
        imported = import_traffic(store, config.task(args.task), recorded)
    print(f"{imported.stored} stored, {imported.repeated} were there already")
    return 0


def _review(args: argparse.Namespace) -> int:
    from retrain.queue_formats import written
    from retrain.review import ask, label_error, sample, take

    config = _config(args)
    task = config.task(args.task)
    with _store(config) as store:
        rows = sample(store, task, args.share)[: args.limit]
        if args.format is not None:
            for line in written(rows, args.format):
                print(line)
            return 0
        for row_id, answer in ask(rows, input, print):
            for invalid in take(store, task, {row_id: answer}).invalid:
                print(f"{invalid}: not taken, that answer breaks the output rules")
        found = label_error(store, task.name)
    if found.n == 0:
        print(f"nothing reviewed yet; {found.rows} rows could be")
        return 0
    print(
        f"the teacher was wrong in {found.wrong} of {found.n} reviewed answers:"
        f" {found.wrong / found.n:.1%} [{found.low:.1%}, {found.high:.1%}]"
    )
    return 0


def _annotate(args: argparse.Namespace, config: "Config") -> int:
    from retrain.queue_formats import annotations
    from retrain.review import take

    answers = annotations(args.file, args.format)
    with _store(config) as store:
        done = take(store, config.task(args.task), answers)
    print(f"{done.right} confirmed, {done.wrong} corrected, {done.unknown} of no row here")
    if done.invalid:
        names = ", ".join(done.invalid[:5])
        print(f"{len(done.invalid)} not taken, against the output rules: {names}", file=sys.stderr)
    return 1 if done.invalid else 0


def _queue_erase(args: argparse.Namespace) -> int:
    from gateway.storage import exchanges
    from retrain.versions import forget

    config = _config(args)
    with _store(config) as store:
        ids = [*args.id, *(exchanges.of_user(store, args.user) if args.user else ())]
        erased = exchanges.erase(store, ids, "retort queue erase")
    forget(config.state, ids)
    print(f"{erased.rows} rows erased")
    if erased.completions:
        print(f"{erased.completions} stored completions erased")
    if erased.datasets:
        print(f"datasets that hold them, not to be trained on again: {', '.join(erased.datasets)}")
    if erased.bundles:
        print(f"bundles made with those, tainted until the next night: {', '.join(erased.bundles)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
