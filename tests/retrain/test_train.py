import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import END, write_tiny_model

from gateway.config import Training
from retrain.adapter_files import CONFIG, WEIGHTS, weights_sha256
from retrain.errors import TrainingError
from retrain.examples import IGNORED, encode, plan
from retrain.train import Row, train_adapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TRAINING = Training(learning_rate=2e-2, epochs=3, batch_size=8)


def row(text: str, answer: str) -> Row:
    return Row(
        messages=[{"role": "system", "content": "S"}, {"role": "user", "content": text}],
        answer=answer,
    )


ROWS = [row(f"ticket {n}", "yes" if n % 2 else "nope") for n in range(32)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With one thread, while tests use it: two that wait for each other between such small
    products are ten times slower on a machine that does anything else."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def test_training_learns_reports_and_writes_an_adapter_that_can_be_served(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, as it is used."""
    out = tmp_path / "adapter"
    out.mkdir()
    (out / "left_over").write_text("of an earlier try")
    steps: list[int] = []
    report = train_adapter(
        ROWS,
        base_model=model,
        out=out,
        training=TRAINING,
        progress=False,
        done=lambda step, loss: steps.append(step),
    )
    assert (report.rows, report.dropped, report.steps) == (32, 0, 12)
    assert report.loss_last < report.loss_first
    assert [step for step, _ in report.losses] == steps == list(range(1, 13))
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS]
    assert report.adapter_sha256 == weights_sha256(out)
    config = json.loads((out / CONFIG).read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == model.name
    assert not {"rank_pattern", "alpha_pattern"} & set(config)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing else is left"
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def trained(model: Path, out: Path, rows: list[Row] = ROWS, **changes: Any) -> str:
    """The weights' hash after a training in this process."""
    from retrain.trainer import train

    out.mkdir()
    training = TRAINING.model_copy(update=changes)
    return train(rows, base_model=model, out=out, training=training).adapter_sha256


def test_the_same_rows_and_seed_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    one = trained(model, tmp_path / "one")
    assert trained(model, tmp_path / "two") == one
    assert (tmp_path / "one" / CONFIG).read_bytes() == (tmp_path / "two" / CONFIG).read_bytes()
    assert trained(model, tmp_path / "three", seed=18) != one
    assert trained(model, tmp_path / "four", rows=ROWS[1:]) != one


def test_the_adapter_gives_peft_the_answers_it_was_trained_on(model: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained(model, tmp_path / "a", rank=16, target_modules=["q_proj", "v_proj", "up_proj"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    [example] = encode(ROWS[:1], tokenizer, 512)
    ids, labels = torch.tensor([example.ids]), torch.tensor([example.labels])
    base = AutoModelForCausalLM.from_pretrained(model)
    before = float(base(input_ids=ids, labels=labels).loss)
    after = float(
        PeftModel.from_pretrained(base, tmp_path / "a")(input_ids=ids, labels=labels).loss
    )
    assert after < before - 0.2


def test_padding_and_batching_do_not_change_the_loss(model: Path, tokenizer: Any) -> None:
    """What the trainer computes for a padded batch is the mean over the answers' tokens that the
    model itself computes row by row."""
    import torch
    from transformers import AutoModelForCausalLM

    from retrain.distiller import Distiller, collate

    examples = encode([row("x", "yes"), row("a longer one", "perhaps")], tokenizer, 512)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total = count = 0.0
    for example in examples:
        ids, labels = torch.tensor([example.ids]), torch.tensor([example.labels])
        answer = len(example.ids) - example.start
        total += float(base(input_ids=ids, labels=labels).loss) * answer
        count += answer
    batch = collate([{"input_ids": list(e.ids), "labels": e.labels} for e in examples], pad=0)
    loss = Distiller.compute_loss(None, base, batch)
    assert float(loss) == pytest.approx(total / count, abs=1e-4)


def test_only_the_answer_and_its_end_are_learned(tokenizer: Any) -> None:
    [example] = encode([row("x", "yes")], tokenizer, 512)
    learned = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(learned) == f"yes{END}"
    prompt = tokenizer.decode(example.ids[: example.start])
    assert prompt.endswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")


def test_rows_that_are_too_long_fail_the_training_when_they_are_many(tokenizer: Any) -> None:
    short = [row("x", "yes")] * 97
    long = [row("x" * 300, "yes")]
    assert len(encode(short + long, tokenizer, 200)) == 97
    with pytest.raises(TrainingError, match=r"3 of 100 rows are longer than training\.max_length"):
        encode(short + long * 3, tokenizer, 200)


def test_a_template_that_shows_another_prompt_when_answered_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% if add_generation_prompt %}Ask:{% else %}Told:{% endif %}{{ messages[0].content }}"
    )
    folder = write_tiny_model(tmp_path / "odd", template=template)
    with pytest.raises(TrainingError, match="renders a prompt differently"):
        encode(ROWS, AutoTokenizer.from_pretrained(folder), 512)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_tiny_model(tmp_path / "plain", template=None)
    with pytest.raises(TrainingError, match="no chat template"):
        encode(ROWS, AutoTokenizer.from_pretrained(folder), 512)


def test_each_pass_holds_every_row_once_in_another_order() -> None:
    lengths = [10 + n % 7 for n in range(50)]
    batches = plan(lengths, batch_size=8, epochs=2, seed=1)
    assert len(batches) == 14
    first, second = batches[:7], batches[7:]
    for one_pass in (first, second):
        assert sorted(index for batch in one_pass for index in batch) == list(range(50))
    assert first != second
    assert plan(lengths, batch_size=8, epochs=0.5, seed=1) == first[:4]


def test_rows_of_a_batch_are_alike_in_length() -> None:
    lengths = [10, 200] * 40
    for batch in plan(lengths, batch_size=8, epochs=1, seed=3):
        assert len({lengths[index] for index in batch}) == 1


@pytest.mark.parametrize(
    ("rows", "broken", "message"),
    [
        ([], False, "there are no rows to train on"),
        (ROWS, True, "there is no base model in .*nothing-here"),
        ([row("x" * 600, "yes")], False, "1 of 1 rows are longer than"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_and_leaves_the_old_adapter(
    model: Path, tmp_path: Path, rows: list[Row], broken: bool, message: str
) -> None:
    out = tmp_path / "adapter"
    out.mkdir()
    (out / CONFIG).write_text("the old one")
    base = tmp_path / "nothing-here" if broken else model
    with pytest.raises(TrainingError, match=message) as caught:
        train_adapter(rows, base_model=base, out=out, training=TRAINING, progress=False)
    assert "\n" not in str(caught.value)
    assert (out / CONFIG).read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_importing_what_starts_a_training_does_not_import_torch() -> None:
    import subprocess

    modules = "train, ask, student_server, student_env, student_model, adapter_files, examples"
    code = f"import sys; from retrain import {modules}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
