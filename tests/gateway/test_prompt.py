"""The one renderer of what the student is asked."""

from gateway.config import PromptContract
from gateway.prompt import prompt_hash, student_messages, user_text

SHORT = PromptContract(system="Sort.")
CUT = PromptContract(system="Sort.", user_regex=r"Ticket: (?P<text>.*?)\s*END")


def test_the_students_prompt_replaces_the_applications() -> None:
    messages = [
        {"role": "system", "content": "A long prompt."},
        {"role": "developer", "content": "More of it."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    assert student_messages(SHORT, messages) == [
        {"role": "system", "content": "Sort."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]


def test_without_a_prompt_of_its_own_the_student_gets_the_applications() -> None:
    messages = [
        {"role": "developer", "content": "Long."},
        {"role": "user", "content": "one"},
    ]
    kept = student_messages(PromptContract(system=None), messages)
    assert kept == [{"role": "system", "content": "Long."}, {"role": "user", "content": "one"}]


def test_the_template_is_cut_off_the_last_user_message_only() -> None:
    wrapped = "Please sort.\nTicket: my parcel\nis lost END thanks"
    messages = [{"role": "user", "content": wrapped}, {"role": "user", "content": wrapped}]
    assert user_text(CUT, messages) == "my parcel\nis lost"
    rendered = student_messages(CUT, messages)
    assert [message["content"] for message in rendered] == [
        "Sort.",
        wrapped,
        "my parcel\nis lost",
    ]


def test_what_the_template_does_not_match_is_kept_whole() -> None:
    assert user_text(CUT, [{"role": "user", "content": "something else"}]) == "something else"


def test_no_user_message_is_an_empty_prompt() -> None:
    assert user_text(SHORT, [{"role": "system", "content": "x"}]) == ""


def test_hash_changes_with_everything_the_student_would_see() -> None:
    hashes = {prompt_hash(contract) for contract in (SHORT, CUT, PromptContract(system=None))}
    assert len(hashes) == 3
    assert prompt_hash(SHORT) == prompt_hash(PromptContract(system="Sort."))
