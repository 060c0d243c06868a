"""`retort demo`: the whole product in eight steps, read top to bottom in `run_demo`."""

import argparse
import json
import os
import platform
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.lane import output_spec
from gateway.storage import exchanges
from gateway.storage.store import Store
from retrain.demo import settings, table
from retrain.demo.desk import desk
from retrain.demo.gateway_process import GatewayProcess
from retrain.demo.nights import champion_router, run_night, told
from retrain.demo.options import Options, read_options
from retrain.demo.page import Night, Story, page
from retrain.demo.recorded_traffic import recorded_traffic
from retrain.demo.screen import Screen, clock
from retrain.demo.steps import Prepare, Stage, new_folder, play, prepare_student, stay_up
from retrain.demo.table import Figures, Played, summarise
from retrain.demo.teacher import classroom
from retrain.night import Trainer
from retrain.train import train_adapter


def demo(args: argparse.Namespace) -> int:
    """Returns the exit code. Raises RetortError, and KeyboardInterrupt on Ctrl-C.

    SIGTERM unwinds as Ctrl-C does. Whatever happens, no process of the demo is left behind.
    """
    options = read_options(args)
    ended: list[int] = []

    def end(number: int, frame: object) -> None:
        ended.append(number)
        signal.raise_signal(signal.SIGINT)

    # a shell that starts it in the background has it ignore SIGINT
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
    }
    try:
        code = run_demo(options)
    except KeyboardInterrupt:
        if not ended:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + ended[0] if ended else code


def run_demo(
    options: Options,
    *,
    prepare: Prepare = prepare_student,
    train: Trainer = train_adapter,
    pace: float = 1.0,
) -> int:
    """The same from code. ``prepare``, ``train`` and ``pace`` (the recorded teacher's, 0: at once)
    are for tests, which have quicker ones."""
    screen, plan = Screen(), options.plan
    if options.traffic is None:
        scenario = desk(plan, options.seed)
    else:
        scenario = recorded_traffic(options.traffic, plan)
    _check_port(options.port)
    folder = new_folder(options.home)
    print(f"Retort demo: {scenario.about}. Everything of this run is in {folder}")

    with ExitStack() as stack:
        screen.heading("prepare", "a real 135M student on vLLM, on this machine's CPU")
        student, model = prepare(options, folder)
        stack.enter_context(student)
        screen.say(f"SmolLM2-135M-Instruct at {student.base_url}; version 0 changes nothing.")

        screen.heading("teacher", "the model you use today")
        room = stack.enter_context(
            classroom(scenario, recorded=options.traffic is not None, pace=pace)
        )
        for line in room.says:
            screen.say(line)

        screen.heading("collect", "the app's base_url points at Retort; the teacher answers")
        config = settings.settings(
            options, room, folder=folder, student_url=student.base_url, model=model
        )
        yaml, spec = folder / "retort.yaml", output_spec(config.task().output)
        settings.write(config, yaml)
        store = stack.enter_context(
            Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
        )
        _check_empty(store, config)
        stage = Stage(
            options=options, screen=screen, folder=folder, room=room, model=model, store=store
        )
        gateway = GatewayProcess(yaml, config.state, folder / "gateway.log")
        stack.enter_context(gateway)
        screen.say(f"gateway at {gateway.base_url}, mode: collect")
        collected = play(stage, config, gateway.base_url, scenario.collect, "collect")
        parts = {"teacher only": collected}
        columns = [summarise("teacher only", parts["teacher only"], spec)]
        rows = sum(exchanges.counts(store, config.task().name).values())
        screen.say(f"{rows:,} exchanges are in the queue.")

        screen.heading("distil", "a LoRA student from what the teacher answered")
        report = run_night(config, store, gateway.url, train=train, max_rows=plan.max_train_rows)
        router = champion_router(config, store)
        nights = [told("The first student", report, router)]
        _say_verdict(screen, nights[-1])

        screen.heading("calibrate", "how sure must the student be to keep the contract?")
        for line in nights[-1].certificate:
            screen.say(line)

        screen.heading("serve", "fresh traffic, with kinds it never saw and off-task messages")
        config = settings.serving(config)
        yaml_text = settings.write(config, yaml)
        gateway.restart()
        screen.say("mode: serve; the gateway was restarted with it.")
        parts["round 1"] = play(stage, config, gateway.base_url, scenario.first, "round 1")
        columns.append(summarise("round 1", parts["round 1"], spec))
        _say_round(screen, columns[-1])

        screen.heading("nightly", "the queue becomes the next student, if it is proven better")
        report = run_night(config, store, gateway.url, train=train, max_rows=plan.max_train_rows)
        router = champion_router(config, store)
        nights.append(told("The night", report, router))
        _say_verdict(screen, nights[-1])
        for line in nights[-1].certificate:
            screen.say(line)

        screen.heading("replay", "fresh traffic like that of round 1")
        parts["round 2"] = play(stage, config, gateway.base_url, scenario.second, "round 2")
        columns.append(summarise("round 2", parts["round 2"], spec))
        _say_round(screen, columns[-1])

        print("\n" + table.text(columns))
        _write_results(stage, columns, parts, nights, yaml_text)
        print(f"Done in {clock(screen.seconds())}. Report: {options.report}")
        if options.exit:
            return 0
        _say_how_to_use(stage, gateway, parts["round 2"])
        try:
            stay_up(gateway, student)
        except KeyboardInterrupt:
            print("\nstopping")
        return 0


def _check_port(port: int) -> None:
    """Now, and not after the first minutes of work. Raises ConfigError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"--port: cannot listen on port {port} ({error.strerror}); --port 0 takes any"
            ) from None


def _check_empty(store: Store, config: Config) -> None:
    rows = sum(exchanges.counts(store, config.task().name).values())
    if rows:
        raise ConfigError(
            f"--database-url: the database has {rows} exchanges of an earlier demo; use "
            "an empty one"
        )


def _say_verdict(screen: Screen, night: Night) -> None:
    screen.say(f"verdict: {night.verdict}")
    for line in night.reasons:
        screen.say(f"- {line}")


def _say_round(screen: Screen, figures: Figures) -> None:
    mix = ", ".join(f"{reason} {count}" for reason, count in sorted(figures.reasons.items()))
    screen.say(f"{figures.answered} answered: {mix}. Every fallback is a row in the queue.")


def _write_results(
    stage: Stage,
    columns: Sequence[Figures],
    parts: dict[str, list[Played]],
    nights: Sequence[Night],
    yaml_text: str,
) -> None:
    """The report, and beside the run's other files the table again and the numbers."""
    plan, room = stage.options.plan, stage.room
    facts = (
        f"teacher: {room.model}, live" if room.live else "teacher: a recording, not a live model",
        f"student: {stage.model.name} on vLLM, CPU",
        f"{plan.collect} collected requests at most, {plan.serve} per round, "
        f"{plan.concurrency} in flight at once, {plan.stream_share:.0%} of them streams",
        f"{os.cpu_count()} CPU cores, Python {platform.python_version()}",
        f"seed {stage.options.seed}; finished after {clock(stage.screen.seconds())}",
        f"files of the run: {stage.folder}",
    )
    story = Story(
        about=room.scenario.about,
        columns=tuple(columns),
        played=parts,
        nights=tuple(nights),
        facts=facts,
        config=yaml_text,
    )
    stage.options.report.write_text(page(story), encoding="utf-8")
    (stage.folder / "table.md").write_text(table.markdown(columns), encoding="utf-8")
    numbers = {"columns": [asdict(column) for column in columns], "facts": facts}
    (stage.folder / "table.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def _say_how_to_use(stage: Stage, gateway: GatewayProcess, played: Sequence[Played]) -> None:
    """Three lines for a terminal beside this one, with a message that the student answered."""
    example = next((item for item in played if item.served), played[0]).outcome.case.messages
    messages = stage.folder / "messages.json"
    messages.write_text(json.dumps(example, indent=1, ensure_ascii=False), encoding="utf-8")
    print(
        "\nThe gateway stays up until Ctrl-C. From another terminal:\n\n"
        "  import json, openai\n"
        f'  client = openai.OpenAI(base_url="{gateway.base_url}", api_key="demo")\n'
        f'  print(client.chat.completions.create(model="{stage.room.model}", '
        f'messages=json.load(open("{messages}"))))\n\n'
        f"Metrics: {gateway.url}/metrics   Queue: retort queue list --config "
        f"{stage.folder / 'retort.yaml'}",
        flush=True,
    )
