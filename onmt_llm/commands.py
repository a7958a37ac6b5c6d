"""The commands: one table behind the installed scripts, `onmt_llm COMMAND`, and what `-help` shows first.

It imports nothing of the package, so that setup.py can read it before anything is installed.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
        module: Its module below `onmt_llm.cli`.
        phrase: What it does, for lists.
        usage: What stands behind its name.
        options: The options that most people need, in the order in which they need them.
        examples: Command lines to begin with, behind its name, and what each does.
    """

    module: str
    phrase: str
    usage: str
    options: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()

    def call(self, argv: list[str]) -> int:
        """Run it with these arguments."""
        from importlib import import_module

        return int(import_module(f"onmt_llm.cli.{self.module}").main(argv))


_TRANSLATE = Command(
    "translate",
    "Translate a file, or continue the prompts in it.",
    "-model MODEL -src FILE [-output FILE] [-OPTION VALUE ...]",
    (
        *("model", "src", "output", "tgt", "template", "transforms", "beam_size", "n_best", "max_length"),
        *("random_sampling_topk", "random_sampling_topp", "random_sampling_temp", "seed", "batch_size", "batch_type"),
        *("precision", "device", "with_score"),
    ),
    (
        ("-model run/m_step_1000 -src test.src -output test.hyp -beam_size 5", "translate a file"),
        ("-model release -src - -output -", "answer standard input by a CTranslate2 release"),
    ),
)

COMMANDS = {
    "onmt_llm_train": Command(
        "train",
        "Train a translation model or a language model, or fine-tune one.",
        "-config FILE [-OPTION VALUE ...]",
        (
            *("data", "save_model", "train_from", "src_vocab", "tgt_vocab", "transforms", "src_subword_model"),
            *("batch_size", "learning_rate", "train_steps", "save_checkpoint_steps", "lora_layers"),
        ),
        (
            ("-config run.yaml -dry_run", "check everything first"),
            ("-config run.yaml -train_from auto", "go on with it"),
        ),
    ),
    "onmt_llm_build_vocab": Command(
        "build_vocab",
        "Count the tokens of the corpora, and write vocabularies.",
        "-config FILE [-OPTION VALUE ...]",
        (
            *("data", "transforms", "src_vocab", "tgt_vocab", "share_vocab", "src_vocab_size", "tgt_vocab_size"),
            *("n_sample", "num_threads", "learn_subwords", "learn_subwords_size", "overwrite"),
        ),
        (
            ("-config run.yaml -n_sample -1", "the vocabularies that the YAML names, of all records"),
            ("-config run.yaml -learn_subwords", "first learn a subword model"),
        ),
    ),
    "onmt_llm_data": Command(
        "data",
        "Look at the data of a run, or tokenise it beforehand.",
        "report | sample | pack | merge | verify [-config FILE] [-OPTION VALUE ...]",
        ("data", "transforms", "n_sample", "save_data", "num_threads", "overwrite", "shards", "output"),
        (
            ("report -config run.yaml", "lengths and shares, a page"),
            ("sample -config run.yaml", "what the model sees, a page"),
            ("pack -config run.yaml", "tokenise the corpora beforehand"),
            ("merge -shards a b -output c", "put them together"),
            ("verify -shards c", "find damage"),
        ),
    ),
    "onmt_llm_translate": _TRANSLATE,
    "onmt_llm_generate": _TRANSLATE,
    "onmt_llm_convert": Command(
        "convert",
        "Make checkpoints of other toolkits' models, and back.",
        "-model_dir MODEL -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (
            ("-model_dir Llama-3.2-1B -output llama", "a Hugging Face folder to a checkpoint"),
            ("-model_dir model.pt -output model", "a checkpoint of OpenNMT-py"),
            ("-model_dir llama -to hf -output hf", "a checkpoint to a Hugging Face folder"),
        ),
    ),
    "onmt_llm_lora": Command(
        "lora",
        "Merge an adapter into its base; adapters of peft in and out.",
        "-base_model BASE -lora_weights ADAPTER -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (
            ("-base_model base -lora_weights run/a_step_1000 -output merged", "merge"),
            ("-action export -lora_weights run/a_step_1000 -output peft", "write it as peft does"),
        ),
    ),
    "onmt_llm_checkpoint": Command(
        "checkpoint",
        "Look into checkpoints, verify and average them.",
        "info | verify | extract_vocabulary | extract_embeddings | average ... [-OPTION VALUE ...]",
        (),
        (
            ("info -model run/m_step_1000", "what it is"),
            ("verify -model run/m_step_1000", "whether it is as it was written"),
            ("average -models run/m_step_900 run/m_step_1000 -output mean", "the mean of several"),
        ),
    ),
    "onmt_llm_eval": Command(
        "eval",
        "Measure the perplexity of a text.",
        "perplexity -model MODEL -src FILE [-tgt FILE] [-OPTION VALUE ...]",
        ("model", "src", "tgt", "output", "batch_size", "batch_type", "precision", "device"),
        (("perplexity -model run/m_step_1000 -src test.txt", "of a language model"),),
    ),
    "onmt_llm_plot": Command(
        "plot",
        "Draw the curves of training runs.",
        "RUN ... [-OPTION VALUE ...]",
        (),
        (("run/m run/n -output curves.png", "two runs in one picture"),),
    ),
    "release_model": Command(
        "release",
        "Write a checkpoint in the form in which it is served.",
        "-model CHECKPOINT -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (("-model run/m_step_1000 -output release -quantization int8", "for CTranslate2, compared with the model"),),
    ),
    "onmt_llm_chat": Command(
        "chat",
        "Talk to a model in the browser.",
        "-inference_config_file FILE [-OPTION VALUE ...]",
        (),
        (("-inference_config_file translate_opts_py.yaml -inference_mode py", "answered by PyTorch"),),
    ),
}


def short_name(command: str) -> str:
    """A command's name behind `onmt_llm`: `train`, `release`."""
    return command.removeprefix("onmt_llm_").removesuffix("_model")
