"""The demo's retort.yaml: the file a user would write by hand, written for one run."""

import os
from pathlib import Path

import yaml

from gateway.config import (
    AuditSection,
    Config,
    Contract,
    Nightly,
    Server,
    StoreSection,
    Student,
    Task,
    Training,
)
from retrain.demo.options import Options
from retrain.demo.recorded_teacher import STUDENT_PRICE
from retrain.demo.teacher import Classroom
from retrain.student_server import BASE

#: Where the gateway reads a --database-url from: URLs hold passwords, files should not.
DATABASE_ENV = "RETORT_DEMO_DATABASE_URL"


def settings(
    options: Options, classroom: Classroom, *, folder: Path, student_url: str, model: Path
) -> Config:
    """The configuration of a run in ``folder``, still collecting."""
    plan, scenario = options.plan, classroom.scenario
    if options.database_url:
        os.environ[DATABASE_ENV] = options.database_url
    return Config(
        state_dir=str(folder / "state"),
        server=Server(port=options.port, drain_s=8.0),
        store=StoreSection(url_env=DATABASE_ENV if options.database_url else None),
        teacher=classroom.section,
        student=Student(base_url=student_url, base_model=BASE, price=STUDENT_PRICE),
        tasks=[
            Task(
                name=scenario.task,
                mode="collect",
                claim=scenario.claim,
                prompt=scenario.prompt,
                output=scenario.output,
                contract=Contract(
                    max_disagreement=plan.max_disagreement, confidence=plan.confidence
                ),
                # no floors: the table of the demo is of one share of audits
                audit=AuditSection(rate=plan.audit_rate, first_requests=0, per_day=0),
                ood_epsilon=plan.ood_epsilon,
            )
        ],
        training=Training(
            base_model=str(model),
            # few rows make few steps, and two thin adapters per layer bear long ones: with 8e-4
            # and batches of 8 the same 440 row-passes gave 3 % agreement instead of half
            learning_rate=1e-2,
            batch_size=4,
            epochs=plan.epochs,
            seed=options.seed,
        ),
        nightly=Nightly(min_new_rows=20),
    )


def serving(config: Config) -> Config:
    """The same, with the student answering where it is certified."""
    task = config.task().model_copy(update={"mode": "serve"})
    return config.model_copy(update={"tasks": [task]})


def write(config: Config, path: Path) -> str:
    """The YAML of what differs from the defaults. Returns it."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    text = "# Written by `retort demo`; every key: docs/configuration.md\n" + yaml.safe_dump(
        data, sort_keys=False, allow_unicode=True, width=96
    )
    path.write_text(text, encoding="utf-8")
    return text
