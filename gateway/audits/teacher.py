"""What the teacher is asked, and what of its answer is a text."""

from gateway.wire.protocol import Body, Chat


def teacher_body(chat: Chat, model: str | None) -> Body:
    """The client's body, for the teacher's model."""
    return {**chat.body, "model": model or chat.model}


def answer_text(body: Body) -> str | None:
    """The text of the first choice; None for a refusal, tool calls, or an answer cut by a
    content filter: nothing a student should learn as an answer."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("finish_reason") == "content_filter":
        return None
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) and content else None
