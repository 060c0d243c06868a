import json

from retrain.demo.desk import desk
from retrain.demo.options import QUICK
from retrain.demo.output_kind import detect, short_prompt
from router.decision import Answer
from router.output import OutputSpec, check


def test_few_short_answers_are_labels():
    output = detect(["card_arrival", "lost_card", "card_arrival", "lost_card"] * 10)
    assert output.kind == "label" and output.labels == ["card_arrival", "lost_card"]
    assert short_prompt(output) == "Answer with the label."


def test_many_different_answers_are_text():
    assert detect([f"Dear customer {k}, thank you." for k in range(50)]).kind == "text"
    assert detect(["A long answer. " * 20] * 50).kind == "text"


def test_json_objects_give_their_common_fields_and_few_values():
    answers = [
        json.dumps({"name": f"n{k}", "kind": "ab"[k % 2], "ok": k % 3 == 0, "tags": [k]})
        for k in range(60)
    ]
    output = detect([*answers, json.dumps({"name": "x", "kind": "a", "ok": True})])
    assert output.kind == "json"
    assert output.fields == {"name": [], "kind": ["a", "b"], "ok": [False, True], "tags": []}


def test_a_few_refusals_do_not_hide_that_a_task_is_json():
    answers = ['{"a":1}'] * 97 + ["I'm sorry, I can't."] * 3
    assert detect(answers).kind == "json"
    assert detect(answers[:50] + ["Sure!"] * 50).kind == "label"


def test_fields_that_are_often_missing_are_not_required():
    answers = ['{"a":1,"b":2}', '{"a":1}'] * 20
    assert detect(answers).fields == {"a": [1]}


def test_the_tickets_are_detected_as_they_are_described():
    scenario = desk(QUICK, seed=17)
    answers = [case.teacher or "" for case in scenario.cases]
    output = detect(answers)
    assert output.kind == "json"
    assert {name: {*values} for name, values in output.fields.items()} == {
        name: {*values} for name, values in scenario.output.fields.items()
    }
    spec = OutputSpec(
        kind="json",
        fields={name: tuple(values) for name, values in output.fields.items()},
        max_tokens=output.max_tokens,
    )
    assert all(check(spec, Answer(text=answer)) is None for answer in answers)
