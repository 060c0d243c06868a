"""Checks of a draft's text: does it refuse, is its length right. Text in, yes or no out."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.output import REFUSAL

#: how much of a text its opening is; a "cannot" further on is ordinary text
OPENING = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """How models refuse in one language, case-folded. ``plain``: openings that are a refusal by
    themselves. ``sorry`` is one only together with an ``unable`` in the same opening: "I am sorry
    that the parcel is late" is an answer."""

    plain: tuple[str, ...]
    sorry: tuple[str, ...]
    unable: tuple[str, ...]


_LANGUAGES = {
    "en": Phrases(
        plain=("as an ai", "as a language model", "i must decline", "i have to decline"),
        sorry=("i'm sorry", "i am sorry", "sorry", "unfortunately", "i apologi"),
        unable=("i can't", "i cannot", "i can not", "i'm unable", "i am unable", "i won't"),
    ),
    "de": Phrases(
        plain=(
            "als ki",
            "als sprachmodell",
            "dabei kann ich nicht helfen",
            "ich kann dabei nicht helfen",
            "ich kann dir dabei nicht",
            "ich kann ihnen dabei nicht",
            "ich kann ihnen nicht helfen",
            "ich darf keine",
        ),
        sorry=("es tut mir leid", "tut mir leid", "leider", "entschuldigung"),
        unable=("kann ich nicht", "ich kann nicht", "kann ich dir", "kann ich ihnen", "ich kann"),
    ),
    "fr": Phrases(
        plain=(
            "en tant qu'ia",
            "en tant que modèle",
            "je ne peux pas vous aider",
            "je ne peux pas répondre",
            "je ne suis pas en mesure",
        ),
        sorry=("je suis désolé", "désolé", "malheureusement", "je regrette"),
        unable=("je ne peux", "je ne suis pas", "il m'est impossible"),
    ),
    "es": Phrases(
        plain=(
            "como ia",
            "como modelo de lenguaje",
            "no puedo ayudar",
            "no puedo responder",
            "no puedo proporcionar",
        ),
        sorry=("lo siento", "lamento", "lamentablemente", "desafortunadamente"),
        unable=("no puedo", "no me es posible", "no estoy en condiciones"),
    ),
    "it": Phrases(
        plain=("come ia", "come modello linguistico", "non posso aiutar", "non posso fornire"),
        sorry=("mi dispiace", "spiacente", "purtroppo"),
        unable=("non posso", "non sono in grado"),
    ),
    "pt": Phrases(
        plain=("como ia", "como modelo de linguagem", "não posso ajudar", "não posso fornecer"),
        sorry=("desculpe", "sinto muito", "lamento", "infelizmente"),
        unable=("não posso", "não consigo"),
    ),
    "nl": Phrases(
        plain=("als ai", "als taalmodel", "ik kan je daar niet", "ik kan u daar niet"),
        sorry=("het spijt me", "sorry", "helaas"),
        unable=("ik kan", "kan ik niet", "kan ik je", "kan ik u"),
    ),
    "sv": Phrases(
        plain=("som en ai", "som ai", "som språkmodell", "jag kan inte hjälpa"),
        sorry=("jag är ledsen", "tyvärr", "förlåt"),
        unable=("jag kan inte", "kan jag inte"),
    ),
    "pl": Phrases(
        plain=("jako model językowy", "jako sztuczna inteligencja", "nie mogę pomóc"),
        sorry=("przykro mi", "niestety", "przepraszam"),
        unable=("nie mogę", "nie jestem w stanie"),
    ),
    "tr": Phrases(
        plain=("bir yapay zeka", "bir dil modeli", "bu konuda yardımcı olamam"),
        sorry=("üzgünüm", "maalesef", "özür dilerim"),
        unable=("yardımcı olamam", "yapamam", "yanıtlayamam", "veremem"),
    ),
    "ru": Phrases(
        plain=("как языковая модель", "как ии", "я не могу помочь", "я не могу ответить"),
        sorry=("извините", "к сожалению", "простите", "мне жаль"),
        unable=("не могу", "не в состоянии"),
    ),
    "zh": Phrases(
        plain=("作为一个人工智能", "作为人工智能", "作为一个语言模型", "我无法", "我不能"),
        sorry=("抱歉", "对不起", "很抱歉", "非常抱歉", "很遗憾"),
        unable=("无法", "不能", "没办法"),
    ),
    "ja": Phrases(
        plain=("aiとして", "言語モデルとして"),
        sorry=("申し訳", "すみません", "ごめんなさい", "恐れ入りますが"),
        unable=("できません", "出来ません", "いたしかねます", "お答えできない"),
    ),
    "ko": Phrases(
        plain=("ai로서", "언어 모델로서"),
        sorry=("죄송", "미안"),
        unable=("수 없", "어렵습니다"),
    ),
    "ar": Phrases(
        plain=("لا أستطيع مساعدتك", "لا يمكنني مساعدتك", "بصفتي نموذج"),
        sorry=("عذرا", "عذرًا", "آسف", "أعتذر", "للأسف"),
        unable=("لا أستطيع", "لا يمكنني", "لا يمكن"),
    ),
    "hi": Phrases(
        plain=("एक एआई", "मैं इसमें मदद नहीं"),
        sorry=("क्षमा करें", "माफ़ करें", "माफ कीजिए", "मुझे खेद है"),
        unable=("नहीं कर सकता", "नहीं कर सकती", "नहीं दे सकता", "असमर्थ"),
    ),
}
REFUSALS = tuple(_LANGUAGES.values())


def refuses(text: str, more: Sequence[str] = ()) -> bool:
    """Whether a text opens like a refusal, in one of some languages. ``more``: further openings
    that count as one."""
    if REFUSAL.match(text[:OPENING]):
        return True
    opening = _plain(text[:OPENING])
    # a phrase without a letter would fit every opening
    if opening.startswith(tuple(filter(None, map(_plain, more)))):
        return True
    return any(
        opening.startswith(language.plain)
        or (opening.startswith(language.sorry) and any(word in opening for word in language.unable))
        for language in REFUSALS
    )


def _plain(text: str) -> str:
    """Case, kinds of apostrophes and white space do not count, nor what is no letter in front."""
    folded = " ".join(text.replace("’", "'").casefold().split())
    start = next((at for at, char in enumerate(folded) if char.isalnum()), len(folded))
    return folded[start:]


def has_length(
    text: str,
    tokens: int | None,
    *,
    min_chars: int = 0,
    max_chars: int | None = None,
    max_tokens: int | None = None,
) -> bool:
    """Whether a text keeps the limits, white space around it not counted. ``tokens`` None: their
    number is unknown, which keeps no limit on it."""
    chars = len(text.strip())
    if chars < min_chars or (max_chars is not None and chars > max_chars):
        return False
    return max_tokens is None or (tokens is not None and tokens <= max_tokens)
