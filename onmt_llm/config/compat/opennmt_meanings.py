"""Options whose names are ours too, but which mean something else in files written for OpenNMT-py."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from onmt_llm.config.compat.values import Translation
from onmt_llm.config.numbers import BeamSize


def sample_as_opennmt(result: Translation, *, replaces_beams: bool) -> None:
    """What sampling options mean in OpenNMT-py's files: a top-k of 0 is none, any other goes before beam search.

    Args:
        result: Changed in place.
        replaces_beams: The file is for OpenNMT-py's own engine. Otherwise it may be for CTranslate2, which searches
            with beams all the same, and a note says so.
    """
    top_k, beams = result.values.get("random_sampling_topk", 1), result.values.get("beam_size", 1)
    if top_k == 0:
        result.put("random_sampling_topk", 1, "random_sampling_topk")
        sentence = "'random_sampling_topk' is 1 here: in OpenNMT-py, 0 means no sampling; -1 samples from all tokens."
        result.notes.append((result.sources["random_sampling_topk"], sentence))
    elif top_k != 1 and beams != 1 and _is_beam_size(beams) and not replaces_beams:
        sentence = (
            f"'beam_size' is {beams}, a beam search, which ignores 'random_sampling_topk'. So does OpenNMT-py with "
            "CTranslate2; its own engine samples: set beam_size to 1 for that."
        )
        result.notes.append((result.sources["beam_size"], sentence))
    elif top_k != 1 and beams != 1 and _is_beam_size(beams):
        result.put("beam_size", 1, "beam_size")
        sentence = f"'beam_size' is 1 here: in OpenNMT-py, answers are sampled, whatever it is ({beams})."
        result.notes.append((result.sources["beam_size"], sentence))


def note_adafactor(result: Translation) -> None:
    """Say how Adafactor differs: another update is trained under the same name."""
    if result.values.get("optim") == "adafactor":
        sentence = (
            "'optim: adafactor' is that of the paper, without the running mean of the gradients (beta1) that "
            "OpenNMT-py's has: choose another learning rate."
        )
        result.notes.append((result.sources["optim"], sentence))


def _is_beam_size(value: object) -> bool:
    try:
        TypeAdapter(BeamSize).validate_python(value)
    except ValidationError:
        return False
    return True
