"""Which script a text is written in and, for some, which language: a light detector.

Scripts are certain: they are read off the code points. Languages that have a script to themselves
(Greek, Hebrew, Thai, Korean, Japanese by its kana, ...) are as certain; those that share one are
told apart by their commonest small words, which takes a sentence or two. Where the words do not
say, the detector says nothing, and a check built on it passes.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection

#: first and last code point, script; sorted. Punctuation, digits and signs belong to none.
_RANGES = (
    (0x41, 0x5A, "latin"),
    (0x61, 0x7A, "latin"),
    (0xAA, 0xAA, "latin"),
    (0xBA, 0xBA, "latin"),
    (0xC0, 0x24F, "latin"),
    (0x250, 0x2AF, "latin"),
    (0x370, 0x3FF, "greek"),
    (0x400, 0x52F, "cyrillic"),
    (0x531, 0x58A, "armenian"),
    (0x591, 0x5F4, "hebrew"),
    (0x600, 0x6FF, "arabic"),
    (0x750, 0x77F, "arabic"),
    (0x8A0, 0x8FF, "arabic"),
    (0x900, 0x97F, "devanagari"),
    (0x980, 0x9FF, "bengali"),
    (0xA00, 0xA7F, "gurmukhi"),
    (0xA80, 0xAFF, "gujarati"),
    (0xB80, 0xBFF, "tamil"),
    (0xC00, 0xC7F, "telugu"),
    (0xC80, 0xCFF, "kannada"),
    (0xD00, 0xD7F, "malayalam"),
    (0xE00, 0xE7F, "thai"),
    (0x10A0, 0x10FF, "georgian"),
    (0x1100, 0x11FF, "hangul"),
    (0x1E00, 0x1EFF, "latin"),
    (0x1F00, 0x1FFF, "greek"),
    (0x3005, 0x3007, "han"),
    (0x3041, 0x30FA, "kana"),
    (0x30FC, 0x30FF, "kana"),
    (0x31F0, 0x31FF, "kana"),
    (0x3400, 0x4DBF, "han"),
    (0x4E00, 0x9FFF, "han"),
    (0xAC00, 0xD7AF, "hangul"),
    (0xF900, 0xFAFF, "han"),
    (0xFB50, 0xFDFF, "arabic"),
    (0xFE70, 0xFEFC, "arabic"),
    (0xFF21, 0xFF3A, "latin"),
    (0xFF41, 0xFF5A, "latin"),
    (0xFF66, 0xFF9D, "kana"),
    (0x20000, 0x3134F, "han"),
)
_STARTS = [first for first, _, _ in _RANGES]
SCRIPTS = frozenset(script for _, _, script in _RANGES)

#: the commonest small words of languages that share a script, case-folded
_WORDS = {
    "en": "the and of to in is that it for you with on are this be not have was your from by will",
    "de": "der die das und ist nicht ein eine zu den von mit sich auf für sie ich dem im wir bitte",
    "fr": "le la les des et est une un du dans que pour vous pas qui sur avec ce votre nous au je",
    "es": "el la los las que de en y un una es por con para su no se del lo al como usted está más",
    "it": "il la di che è e un una per non in con del della sono si le gli dei al nel questo suo",
    "pt": "o a de que e um uma para com não os as em do da por se no na é seu mais você ao foi",
    "nl": "de het een en van is dat niet op te zijn voor met die ik aan u er worden uw hebben wij",
    "sv": "och att det som en är på för av med den inte till har de jag ett om vi din kan",
    "da": "og det er til på en for at af med den ikke der de har jeg et vi kan din blev som",
    "no": "og det er til på en for at av med den ikke som de har jeg et vi kan din ble",
    "pl": "i w na nie się z do to jest że o jak za od po przez dla oraz ma są twoje czy",
    "cs": "a v na se je že to s z do o k i pro by jako za ale podle jsme váš prosím není",
    "tr": "ve bir bu için ile da de çok ne olarak daha gibi var değil sonra kadar ama siz olan mi",
    "fi": "ja on ei se että en hän ole mutta kun oli ovat tai sen kuin voi myös ovat teidän",
    "ro": "și de la în a cu pe un o este nu să din care pentru ce mai sunt se au că",
    "hu": "a az és hogy nem is egy ez de meg van csak már vagy ha mint még el fel",
    "id": "yang dan di untuk dengan dari ini tidak itu pada adalah anda dalam akan ke saya telah",
    "ru": "и в не на что я с он как это по но из у за от для вы мы к бы так же",
    "uk": "і в не на що я з він як це по але із у за від для ви ми до та є",
    "bg": "и в не на че аз с той като това по но от за да се ще е са му ви",
    "ar": "في من على إلى أن لا ما هذا عن التي الذي هو هي كان قد مع هذه كل ذلك أو",
    "fa": "و در به از که این را با است برای آن یک تا می بر هم شما ما یا شده",
    "hi": "के है में की से को और का पर यह नहीं हैं एक कि भी था लिए आप हो ने",
    "mr": "आणि आहे या च्या ते हे एक मध्ये आहेत नाही तो ती होते की असे किंवा साठी व",
}
#: the languages that have a word
_USES: dict[str, tuple[str, ...]] = {}
for _language, _list in _WORDS.items():
    for _word in sorted({*_list.split()}):
        _USES[_word] = (*_USES.get(_word, ()), _language)
#: languages with a script of their own
_OWN = {
    "greek": "el",
    "hebrew": "he",
    "thai": "th",
    "hangul": "ko",
    "kana": "ja",
    "armenian": "hy",
    "georgian": "ka",
    "bengali": "bn",
    "tamil": "ta",
    "telugu": "te",
    "kannada": "kn",
    "malayalam": "ml",
    "gujarati": "gu",
    "gurmukhi": "pa",
}
_SHARED = {
    "cyrillic": ("ru", "uk", "bg"),
    "arabic": ("ar", "fa"),
    "devanagari": ("hi", "mr"),
    "latin": tuple(
        language
        for language in _WORDS
        if language not in ("ru", "uk", "bg", "ar", "fa", "hi", "mr")
    ),
}
LANGUAGES = frozenset({*_WORDS, *_OWN.values(), "zh"})
#: not by \w: to Python the vowel signs of Hindi are no part of a word
_WORD = re.compile(r"[^\s\d.,;:!?¿¡()\[\]{}<>\"'’“”„«»/|*_#।،؛؟-]+")
#: so many small words must be there, and so much more than of any other language
_ENOUGH = 3
_LEAD = 1.5
#: a script with less than this share of the letters is a name or a quotation
_SHARE = 0.2
#: Japanese is told from Chinese by less: content words are written in Han
_KANA = 0.05


def scripts(text: str) -> Counter[str]:
    """The letters of each script."""
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        point = ord(char)
        at = bisect_right(_STARTS, point) - 1
        if at >= 0 and point <= _RANGES[at][1] and (char.isalpha() or point > 0x2AF):
            found[_RANGES[at][2]] += count
    return found


def language(text: str) -> str | None:
    """The ISO 639-1 code of the text's language, where the detector can tell."""
    letters = scripts(text)
    total = letters.total()
    if not total:
        return None
    if letters["han"] + letters["kana"] > total / 2:
        return "ja" if letters["kana"] > _KANA * total else "zh"
    script, count = letters.most_common(1)[0]
    if count <= total / 2:
        return None
    if script in _OWN:
        return _OWN[script]
    return _by_words(text, _SHARED[script])


def _by_words(text: str, among: tuple[str, ...]) -> str | None:
    hits = Counter(dict.fromkeys(among, 0))
    for word in _WORD.findall(text.casefold()):
        for code in _USES.get(word, ()):
            if code in hits:
                hits[code] += 1
    (best, most), (_, second) = hits.most_common(2)
    return best if most >= _ENOUGH and most >= _LEAD * second else None


def is_in(text: str, *, languages: Collection[str] = (), allowed: Collection[str] = ()) -> bool:
    """Whether a text is in one of the ``languages`` and the ``allowed`` scripts. What is empty
    allows all, and what cannot be told passes: a label, a number, a name."""
    if allowed:
        letters = scripts(text)
        most = _SHARE * letters.total()
        if any(count > most for script, count in letters.items() if script not in allowed):
            return False
    if not languages:
        return True
    found = language(text)
    return found is None or found in languages
