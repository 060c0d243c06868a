"""Checks of a draft's text: refusals, length, language, personal data."""

import random
import time

import pytest

from router.checks import has_length, refuses
from router.language import LANGUAGES, SCRIPTS, is_in, language, scripts
from router.pii import iban_checks, leaks, luhn

# put together here, so that no scanner takes them for somebody's
KEYS = [
    "sk-" + "a1B2" * 8,
    "ghp_" + "x9" * 18,
    "AKIA" + "ABCDEFGH12345678",
    "xoxb-" + "123456789012-abc",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "MIIEpAIBAAKCAQEA0Z3VS5JJcds3",
]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist.",
        "**As an AI language model, I do not have opinions.",
        "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
        "Leider kann ich Ihnen diese Auskunft nicht geben.",
        "Je suis désolé, mais je ne peux pas répondre à cette demande.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Mi dispiace, ma non posso aiutarti.",
        "Sinto muito, mas não posso ajudar com isso.",
        "Het spijt me, maar daar kan ik niet bij helpen.",
        "Przykro mi, ale nie mogę pomóc.",
        "Üzgünüm, bu konuda yardımcı olamam.",
        "К сожалению, я не могу ответить на этот вопрос.",
        "抱歉,我无法回答这个问题。",
        "申し訳ありませんが、お答えできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "عذرًا، لا أستطيع مساعدتك في ذلك.",
    ],
)
def test_refusals_are_known_in_many_languages(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "parcel",
        "I'm sorry that your parcel is late; it arrives on Monday.",
        "Es tut mir leid, dass Ihr Paket zu spät kommt.",
        "Mi dispiace per il ritardo: il pacco arriva lunedì.",
        "The customer writes: I cannot open the door.",
        "Lo siento mucho. Su paquete llega el lunes.",
    ],
)
def test_an_apology_or_a_quotation_is_not_a_refusal(text: str) -> None:
    assert not refuses(text)


def test_further_openings_may_be_given() -> None:
    assert not refuses("That is beyond my remit.")
    assert refuses("  THAT is  beyond my remit.", ("that is beyond",))
    assert not refuses("Well, that is beyond my remit.", ("that is beyond",))
    assert not refuses("parcel", ("!?", ""))


def test_length_is_counted_without_white_space_around() -> None:
    assert has_length(" ab ", 1, min_chars=2, max_chars=2, max_tokens=1)
    assert not has_length(" a ", 1, min_chars=2)
    assert not has_length("abc", 1, max_chars=2)
    assert not has_length("abc", 2, max_tokens=1)


def test_a_limit_on_tokens_nobody_counted_is_not_kept() -> None:
    assert not has_length("abc", None, max_tokens=5)
    assert has_length("abc", None)


SENTENCES = {
    "en": "Your parcel will be delivered on Monday, and you will get a message from us.",
    "de": "Ihr Paket wird am Montag geliefert, und Sie bekommen eine Nachricht von uns.",
    "fr": "Votre colis sera livré lundi et vous recevrez un message de la part de nous.",
    "es": "Su paquete será entregado el lunes y usted recibirá los detalles para la entrega.",
    "it": "Il tuo pacco sarà consegnato lunedì e riceverai un messaggio con i dettagli.",
    "pt": "O seu pacote será entregue na segunda e você vai receber uma mensagem com os detalhes.",
    "nl": "Uw pakket wordt maandag bezorgd en u krijgt een bericht van ons met de details.",
    "sv": "Ditt paket levereras på måndag och du får ett meddelande från oss med det viktiga.",
    "pl": "Paczka zostanie dostarczona w poniedziałek i nie jest to problem, że się spóźni.",
    "uk": "Ваша посилка буде доставлена в понеділок, і ви отримаєте повідомлення від нас.",
    "ru": "Мы не можем отправить это по почте, но вы можете забрать посылку у нас в офисе.",
    "ar": "لا يمكن أن تصل الشحنة في هذا اليوم، وسوف نرسل إليك رسالة من المكتب عن ذلك.",
    "fa": "بسته شما در روز دوشنبه به دست شما می رسد و این پیام برای شما است.",
    "hi": "आपका पार्सल सोमवार को पहुँच जाएगा और यह संदेश आपके लिए है कि आप घर पर रहें।",
    "zh": "您的包裹将于周一送达。",
    "ja": "お荷物は月曜日に届きます。",
    "ko": "소포는 월요일에 배송됩니다.",
    "el": "Το δέμα θα παραδοθεί τη Δευτέρα.",
    "he": "החבילה תימסר ביום שני.",
    "th": "พัสดุจะถูกจัดส่งในวันจันทร์",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_told_from_every_other_language(code: str) -> None:
    assert language(SENTENCES[code]) == code
    assert is_in(SENTENCES[code], languages=[code])
    others = sorted(LANGUAGES - {code})
    assert not is_in(SENTENCES[code], languages=others)


@pytest.mark.parametrize("text", ["parcel", "42 %", "", "🙂", "Müller GmbH, Berlin", '{"a": 1}'])
def test_what_cannot_be_told_passes(text: str) -> None:
    assert language(text) is None
    assert is_in(text, languages=["ja"])


def test_a_foreign_script_fails_a_name_in_it_passes() -> None:
    assert scripts("aбв1!") == {"latin": 1, "cyrillic": 2}
    assert not is_in("Ваша посылка", allowed=["latin"])
    assert is_in("The author of that very long novel is called Толстой.", allowed=["latin"])
    assert is_in("123 !?", allowed=["latin"])
    assert {"latin", "han", "arabic"} <= SCRIPTS


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@corp.co.uk please", "email"),
        ("call +49 170 1234567 now", "phone"),
        ("call (415) 555-2671 now", "phone"),
        ("call 0170/1234567 now", "phone"),
        ("IBAN DE89 3704 0044 0532 0130 00 IST richtig", "iban"),
        ("gb82west12345698765432", "iban"),
        ("card 4111 1111 1111 1111", "card"),
        ("card 378282246310005", "card"),
        ("ssn 078-05-1120", "ssn"),
        ("host 8.8.8.8", "ip"),
        ("host 2001:db8:0:1::2", "ip"),
        *[(f"key {key}", "secret") for key in KEYS],
    ],
)
def test_what_only_the_answer_holds_is_a_leak(text: str, kind: str) -> None:
    assert kind in list(leaks(text, "who is it?"))
    assert kind in list(leaks(text, "who is it?", [kind]))  # type: ignore[list-item]
    assert list(leaks(text, f"it is: {text}")) == []


def test_another_spelling_of_what_the_request_holds_is_no_leak() -> None:
    assert not list(leaks("+49 170 1234567", "my number is 0170-1234567"))
    assert not list(leaks("DE89370400440532013000", "de89 3704 0044 0532 0130 00"))
    assert not list(leaks("4111-1111-1111-1111", "4111 1111 1111 1111"))
    assert not list(leaks("Jane@Corp.com", "jane@corp.COM"))
    assert list(leaks("jane@corp.com", "john@corp.com")) == ["email"]


@pytest.mark.parametrize(
    "text",
    [
        "name@example.com, you@mail.test",
        "2026-11-24 12:30:45",
        "1,234.50 EUR",
        "DE89 3704 0044 0532 0130 01",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "000-12-1234",
        "127.0.0.1 and ::1 and 300.1.1.1",
        "std::string a::b",
        "version 1.2.3.4.5",
        "ticket 0012345678",
        "sk-short, AKIA123, eyJ.eyJ.x",
        "١٢٣٤ ٥٦٧٨ ٩٠١٢ ٣٤٥٦",
    ],
)
def test_what_only_looks_like_it_is_no_leak(text: str) -> None:
    assert list(leaks(text, "")) == []


def test_luhn_finds_every_single_mistake_and_neighbours_swapped() -> None:
    dice = random.Random(1)
    for _ in range(200):
        stem = "".join(dice.choices("0123456789", k=15))
        (right,) = [stem + digit for digit in "0123456789" if luhn(stem + digit)]
        at = dice.randrange(16)
        for digit in set("0123456789") - {right[at]}:
            assert not luhn(right[:at] + digit + right[at + 1 :])
        for at in range(15):
            one, two = right[at], right[at + 1]
            if one != two and {one, two} != {"0", "9"}:
                assert not luhn(right[:at] + two + one + right[at + 2 :])


def test_iban_check_digits_are_those_of_the_standard() -> None:
    dice = random.Random(2)
    for _ in range(200):
        bban = "".join(dice.choices("0123456789", k=18))
        # ISO 13616: 98 minus the remainder with the check digits 00
        digits = 98 - int(bban + "131400") % 97
        assert iban_checks(f"DE{digits:02}{bban}")
        assert not iban_checks(f"DE{(digits + 1) % 97:02}{bban}")
        assert not iban_checks(f"DE{digits:02}{bban}0")
        assert not iban_checks(f"ZZ{digits:02}{bban}")


def noise(dice: random.Random) -> str:
    """Anything a decoder might leave: all planes, half surrogates, controls, and seeds of what
    the checks look for."""
    pieces = [
        *(
            "@",
            ".",
            "-",
            "+",
            " ",
            "::",
            "\0",
            "0",
            "1",
            "DE",
            "eyJ",
            "sk-",
            "I'm sorry",
            "ß",
            "\n",
        ),
        *(chr(dice.randrange(0x110000)) for _ in range(5)),
        chr(dice.randrange(0xD800, 0xE000)),
    ]
    return "".join(dice.choices(pieces, k=dice.randrange(80)))


def test_no_text_breaks_a_check() -> None:
    dice = random.Random(3)
    for _ in range(1500):
        text, request = noise(dice), noise(dice)
        refuses(text, (request,))
        has_length(text, None, min_chars=1, max_chars=5)
        is_in(text, languages=["en"], allowed=["latin"])
        list(leaks(text, request))
        assert list(leaks(text, text)) == []


@pytest.mark.parametrize(
    "piece",
    ["a", "1 ", "eyJ", "a.b", ":", "A1 ", "+1", "0 12 ", "DE12", "sk-", "1.1.", "a@", "@a.a", "(0"],
)
def test_no_text_takes_a_check_long(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    started = time.perf_counter()
    list(leaks(text, text))
    refuses(text)
    language(text)
    # a second is ten times what it takes here; catastrophic backtracking takes hours
    assert time.perf_counter() - started < 10
