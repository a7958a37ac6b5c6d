"""Releasing a trained model: for CTranslate2, as a checkpoint, or as one torch file; verified against the model."""

from onmt_llm.releasing import ctranslate2, plain  # importing them files their formats
from onmt_llm.releasing.formats import FORMATS, release

__all__ = ["FORMATS", "ctranslate2", "plain", "release"]
