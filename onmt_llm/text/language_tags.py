"""Languages by the tags that people and other programs use: BCP 47 (`fr`, `zh-Hant`) instead of `fra_Latn` or `fr_XX`.

The tables are from ISO 639; names are in English.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.text.languages import SRC_LANG, TGT_LANG
from onmt_llm.text.languages import places as used_places


def _entries(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(";")]


_NAMES = {}
_SHORT = {}
"""The code of two letters for one of three."""
for _entry in _entries("""
aa aar Afar; ab abk Abkhazian; ae ave Avestan; af afr Afrikaans; ak aka Akan; am amh Amharic; an arg Aragonese;
ar ara Arabic; as asm Assamese; av ava Avaric; ay aym Aymara; az aze Azerbaijani; ba bak Bashkir; be bel Belarusian;
bg bul Bulgarian; bi bis Bislama; bm bam Bambara; bn ben Bengali; bo bod Tibetan; br bre Breton; bs bos Bosnian;
ca cat Catalan; ce che Chechen; ch cha Chamorro; co cos Corsican; cr cre Cree; cs ces Czech; cu chu Church Slavic;
cv chv Chuvash; cy cym Welsh; da dan Danish; de deu German; dv div Dhivehi; dz dzo Dzongkha; ee ewe Ewe; el ell Greek;
en eng English; eo epo Esperanto; es spa Spanish; et est Estonian; eu eus Basque; fa fas Persian; ff ful Fulah;
fi fin Finnish; fj fij Fijian; fo fao Faroese; fr fra French; fy fry Western Frisian; ga gle Irish;
gd gla Scottish Gaelic; gl glg Galician; gn grn Guarani; gu guj Gujarati; gv glv Manx; ha hau Hausa; he heb Hebrew;
hi hin Hindi; ho hmo Hiri Motu; hr hrv Croatian; ht hat Haitian Creole; hu hun Hungarian; hy hye Armenian;
hz her Herero; ia ina Interlingua; id ind Indonesian; ie ile Interlingue; ig ibo Igbo; ii iii Sichuan Yi;
ik ipk Inupiaq; io ido Ido; is isl Icelandic; it ita Italian; iu iku Inuktitut; ja jpn Japanese; jv jav Javanese;
ka kat Georgian; kg kon Kongo; ki kik Kikuyu; kj kua Kuanyama; kk kaz Kazakh; kl kal Kalaallisut; km khm Khmer;
kn kan Kannada; ko kor Korean; kr kau Kanuri; ks kas Kashmiri; ku kur Kurdish; kv kom Komi; kw cor Cornish;
ky kir Kyrgyz; la lat Latin; lb ltz Luxembourgish; lg lug Ganda; li lim Limburgan; ln lin Lingala; lo lao Lao;
lt lit Lithuanian; lu lub Luba-Katanga; lv lav Latvian; mg mlg Malagasy; mh mah Marshallese; mi mri Maori;
mk mkd Macedonian; ml mal Malayalam; mn mon Mongolian; mr mar Marathi; ms msa Malay; mt mlt Maltese; my mya Burmese;
na nau Nauru; nb nob Norwegian Bokmål; nd nde North Ndebele; ne nep Nepali; ng ndo Ndonga; nl nld Dutch;
nn nno Norwegian Nynorsk; no nor Norwegian; nr nbl South Ndebele; nv nav Navajo; ny nya Chichewa; oc oci Occitan;
oj oji Ojibwa; om orm Oromo; or ori Odia; os oss Ossetian; pa pan Punjabi; pi pli Pali; pl pol Polish; ps pus Pashto;
pt por Portuguese; qu que Quechua; rm roh Romansh; rn run Rundi; ro ron Romanian; ru rus Russian; rw kin Kinyarwanda;
sa san Sanskrit; sc srd Sardinian; sd snd Sindhi; se sme Northern Sami; sg sag Sango; sh hbs Serbo-Croatian;
si sin Sinhala; sk slk Slovak; sl slv Slovenian; sm smo Samoan; sn sna Shona; so som Somali; sq sqi Albanian;
sr srp Serbian; ss ssw Swati; st sot Southern Sotho; su sun Sundanese; sv swe Swedish; sw swa Swahili; ta tam Tamil;
te tel Telugu; tg tgk Tajik; th tha Thai; ti tir Tigrinya; tk tuk Turkmen; tl tgl Tagalog; tn tsn Tswana;
to ton Tonga; tr tur Turkish; ts tso Tsonga; tt tat Tatar; tw twi Twi; ty tah Tahitian; ug uig Uyghur;
uk ukr Ukrainian; ur urd Urdu; uz uzb Uzbek; ve ven Venda; vi vie Vietnamese; vo vol Volapük; wa wln Walloon;
wo wol Wolof; xh xho Xhosa; yi yid Yiddish; yo yor Yoruba; za zha Zhuang; zh zho Chinese; zu zul Zulu
"""):
    _two, _three, _name = _entry.split(" ", 2)
    _NAMES[_two], _SHORT[_three] = _name, _two
for _entry in _entries("""
ace Achinese; acm Mesopotamian Arabic; acq Ta'izzi-Adeni Arabic; aeb Tunisian Arabic; ajp South Levantine Arabic;
apc Levantine Arabic; ars Najdi Arabic; ary Moroccan Arabic; arz Egyptian Arabic; ast Asturian; awa Awadhi;
azb South Azerbaijani; ban Balinese; bem Bemba; bho Bhojpuri; bjn Banjar; bug Buginese; ceb Cebuano; cjk Chokwe;
ckb Central Kurdish; crh Crimean Tatar; dik Southwestern Dinka; dyu Dyula; fon Fon; fur Friulian; hne Chhattisgarhi;
ilo Iloko; kab Kabyle; kac Kachin; kam Kamba; kbp Kabiyè; kea Kabuverdianu; kmb Kimbundu; lij Ligurian; lmo Lombard;
ltg Latgalian; lua Luba-Lulua; luo Luo; lus Lushai; mag Magahi; mai Maithili; min Minangkabau; mni Manipuri;
mos Mossi; nso Pedi; nus Nuer; pag Pangasinan; pap Papiamento; prs Dari; sat Santali; scn Sicilian; shn Shan;
szl Silesian; taq Tamasheq; tpi Tok Pisin; tum Tumbuka; tzm Central Atlas Tamazight; umb Umbundu; vec Venetian;
war Waray; yue Yue Chinese
"""):
    _three, _name = _entry.split(" ", 1)
    _NAMES[_three] = _name

_SHORT |= dict(
    entry.split()
    for entry in _entries("""
arb ar; als sq; ayr ay; azj az; cmn zh; ekk et; fuv ff; gaz om; khk mn; kmr ku; knc kr; lvs lv; npi ne; ory or; pbt ps;
pes fa; plt mg; quy qu; swh sw; uzn uz; ydd yi; zsm ms; ns nso
""")
)
"""Codes that models use for a group of languages (Standard Arabic for Arabic), and M2M100's for Pedi."""

_SCRIPTS = {
    **{"Arab": "Arabic script", "Beng": "Bengali script", "Cyrl": "Cyrillic", "Deva": "Devanagari"},
    **{"Hans": "simplified", "Hant": "traditional", "Latn": "Latin script", "Tfng": "Tifinagh"},
}
_ALIASES = {"zh-cn": "zh-hans", "zh-sg": "zh-hans", "zh-tw": "zh-hant", "zh-hk": "zh-hant", "zt": "zh-hant"}
_ALIASES |= {"pb": "pt-br", "iw": "he", "in": "id", "ji": "yi"}
"""Other tags in use: by region, LibreTranslate's own, and old ones."""


def tags_of(codes: Collection[str]) -> dict[str, str]:
    """The tag of each language of a model, with the model's code for it.

    A tag has a script or region only where the model has the language in several.

    Examples:
        >>> tags_of(["eng_Latn", "zho_Hans", "zho_Hant"])
        {'en': 'eng_Latn', 'zh-Hans': 'zho_Hans', 'zh-Hant': 'zho_Hant'}

    Args:
        codes: The model's codes, such as `fra_Latn`, `fr_XX`, `fra` or `fr`.
    """
    languages = Counter(_language(code) for code in codes)
    tags: dict[str, str] = {}
    for code in codes:
        language, _, variant = code.partition("_")
        tag = _language(code) + (f"-{variant}" if variant and languages[_language(code)] > 1 else "")
        tags.setdefault(tag if language.lower() in _SHORT or _language(code) in _NAMES else code, code)
    return tags


def find_tag(wanted: str, tags: Mapping[str, str]) -> str | None:
    """The tag that somebody means: by itself, another name of it, the model's code, or without script and region.

    Args:
        wanted: `fr`, `FR`, `fr-CA`, `fra`, `fra_Latn`; `zh` is simplified Chinese.
        tags: The model's, with its codes.

    Returns:
        One of `tags`; None = the model does not have the language.
    """
    own = next((tag for tag, code in tags.items() if code == wanted), None)
    if own is not None:
        return own
    known = {tag.lower(): tag for tag in tags}
    low = wanted.lower().replace("_", "-")
    low = _ALIASES.get(low, low)
    language, _, variant = low.partition("-")
    short = _SHORT.get(language, language)
    full = f"{short}-{variant}" if variant else short
    nearest = {"zh": "zh-hans", "no": "nb", "nb": "no"}.get(short, "") if variant != "hant" else ""
    return next((known[each] for each in (full, short, nearest) if each in known), None)


def language_name(tag: str) -> str:
    """The English name of a language; the tag itself if it is unknown."""
    language, _, variant = tag.partition("-")
    name = _NAMES.get(language)
    if name is None:
        return tag
    return f"{name} ({_SCRIPTS.get(variant, variant)})" if variant else name


def _language(code: str) -> str:
    language = code.split("_")[0].lower()
    return _SHORT.get(language, language)


def offered_languages(
    config: CheckpointConfig, *, src: str = "", tgt: str = ""
) -> tuple[dict[str, str], dict[str, str]]:
    """The languages that a model translates from and into: their tags, with the codes that the model is asked with.

    Args:
        config: The model's; a language that is part of its sequences may be any of its languages.
        src, tgt: Codes of the languages of a model for one pair; "" = not known, and the model is offered for none.
    """
    places = used_places(config.sequences)
    all_languages = tags_of(list(config.languages.tokens))
    sources = all_languages if SRC_LANG in places else tags_of([src] if src else [])
    targets = all_languages if TGT_LANG in places else tags_of([tgt] if tgt else [])
    return sources, targets
