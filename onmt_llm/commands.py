"""The table of commands: the installed scripts, `onmt_llm COMMAND`, and what `-help` shows first.

This module imports nothing from the package, so setup.py can read it before anything is installed.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
        module: Its module below `onmt_llm.cli`.
        phrase: What it does, in one sentence.
        usage: The arguments after its name.
        options: The options that most users need, in the order in which they need them.
        examples: Arguments of example command lines, and what each line does.
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
        ("-model release -src - -output -", "answer standard input with a CTranslate2 release"),
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
            ("-config run.yaml -train_from auto", "resume the run"),
        ),
    ),
    "onmt_llm_launch": Command(
        "launch",
        "Write the script that starts a training run on a cluster.",
        "slurm | torchrun | ray -config FILE [-OPTION VALUE ...]",
        (
            *("nodes", "gpus_per_node", "cpus_per_process", "time", "partition", "account", "commands", "output"),
            "max_restarts",
        ),
        (
            ("slurm -config run.yaml -nodes 4 -output train.slurm", "a job that queues itself again"),
            ("ray -config run.yaml -nodes 2", "train on a Ray cluster"),
        ),
    ),
    "onmt_llm_build_vocab": Command(
        "build_vocab",
        "Count the tokens of the corpora and write vocabularies.",
        "-config FILE [-OPTION VALUE ...]",
        (
            *("data", "transforms", "src_vocab", "tgt_vocab", "share_vocab", "src_vocab_size", "tgt_vocab_size"),
            *("n_sample", "num_threads", "learn_subwords", "learn_subwords_size", "overwrite"),
        ),
        (
            ("-config run.yaml -n_sample -1", "build the vocabularies that the YAML names from all records"),
            ("-config run.yaml -learn_subwords", "learn a subword model first"),
        ),
    ),
    "onmt_llm_data": Command(
        "data",
        "Inspect, export or tokenise the data of a run.",
        "report | sample | export | pack | merge | verify [-config FILE] [-OPTION VALUE ...]",
        ("data", "transforms", "n_sample", "save_data", "num_threads", "overwrite", "shards", "output"),
        (
            ("report -config run.yaml", "write a page of lengths and shares"),
            ("sample -config run.yaml", "write a page of what the model sees"),
            ("pack -config run.yaml", "tokenise the corpora in advance"),
            ("merge -shards a b -output c", "merge shards"),
            ("verify -shards c", "check shards for damage"),
        ),
    ),
    "onmt_llm_translate": _TRANSLATE,
    "onmt_llm_generate": _TRANSLATE,
    "onmt_llm_convert": Command(
        "convert",
        "Convert models of other toolkits to checkpoints, and back.",
        "-model_dir MODEL -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (
            ("-model_dir Llama-3.2-1B -output llama", "convert a Hugging Face folder to a checkpoint"),
            ("-model_dir model.pt -output model", "convert an OpenNMT-py checkpoint"),
            ("-model_dir llama -to hf -output hf", "convert a checkpoint to a Hugging Face folder"),
            (
                "-model_dir llama -to gguf -quantization q8_0 -output llama.gguf",
                "and to a file for llama.cpp and Ollama",
            ),
        ),
    ),
    "onmt_llm_lora": Command(
        "lora",
        "Merge an adapter into its base; import and export peft adapters.",
        "-base_model BASE -lora_weights ADAPTER -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (
            ("-base_model base -lora_weights run/a_step_1000 -output merged", "merge"),
            ("-action export -lora_weights run/a_step_1000 -output peft", "export it in peft's format"),
        ),
    ),
    "onmt_llm_checkpoint": Command(
        "checkpoint",
        "Inspect, verify, average and consolidate checkpoints.",
        "info | verify | seal | extract_vocabulary | average | consolidate | export ... [-OPTION VALUE ...]",
        (),
        (
            ("info -model run/m_step_1000", "describe it"),
            ("verify -model run/m_step_1000", "check that it is unchanged since it was written"),
            ("average -models run/m_step_900 run/m_step_1000 -output mean", "average several checkpoints"),
            ("export -model run/m_step_1000 -output model", "put the parts of several processes together"),
        ),
    ),
    "onmt_llm_hub": Command(
        "hub",
        "Upload models to the Hugging Face Hub, and download them.",
        "upload | download ... [-OPTION VALUE ...]",
        (),
        (
            ("upload -folder hf -repo me/my-model", "upload an export, a release, an adapter or a checkpoint"),
            ("download -repo me/my-model -output model", "download it, verified"),
        ),
    ),
    "onmt_llm_eval": Command(
        "eval",
        "Measure models: perplexity, scores, tasks, checkpoints of a run.",
        "perplexity | score | tasks | compare | run ... [-OPTION VALUE ...]",
        (
            *("model", "src", "tgt", "hyp", "metrics", "resamples", "tasks", "mmlu", "save_model", "watch", "output"),
            *("batch_size", "batch_type", "precision", "device"),
        ),
        (
            ("perplexity -model run/m_step_1000 -src test.txt", "measure a language model"),
            ("score -hyp a.txt b.txt -tgt ref.txt -resamples 1000", "score two systems, with a paired test"),
            ("score -model run/m_step_1000 -src test.src -tgt test.tgt", "let a model answer, and score it"),
            ("tasks -model run/m_step_1000 -tasks mmlu -mmlu mmlu", "tasks of lm-evaluation-harness"),
            ("compare -models base run/m_step_1000 -src prompts.txt -output page.html", "answers side by side"),
            ("run -config run.yaml -output results.csv -watch 60", "the checkpoints of a run, while it trains"),
        ),
    ),
    "onmt_llm_plot": Command(
        "plot",
        "Plot the curves of training runs.",
        "RUN ... [-OPTION VALUE ...]",
        (),
        (("run/m run/n -output curves.png", "plot two runs in one figure"),),
    ),
    "release_model": Command(
        "release",
        "Release a checkpoint for serving, checked against the model.",
        "-model CHECKPOINT -output DIRECTORY [-OPTION VALUE ...]",
        (),
        (
            (
                "-model run/m_step_1000 -output release -quantization int8",
                "release for CTranslate2, verified against the checkpoint",
            ),
        ),
    ),
    "onmt_llm_chat": Command(
        "chat",
        "Chat with a model in the browser, or translate with it.",
        "-model MODEL [-OPTION VALUE ...]",
        (),
        (
            ("-model release", "chat with a checkpoint or a release"),
            ("-inference_config_file translate.yaml -server_port 5000", "with the model and options of a YAML file"),
        ),
    ),
    "onmt_llm_serve": Command(
        "serve",
        "Serve models to clients of OpenAI, OpenNMT-py and LibreTranslate.",
        "-config FILE [-OPTION VALUE ...], or -model MODEL",
        ("models", "model", "host", "port", "api_keys_file", "max_queue", "max_seconds", "idle_unload_seconds"),
        (
            ("-model release", "serve a checkpoint or a release at http://127.0.0.1:8000/v1"),
            ("-config serve.yaml", "serve the models that a YAML file names"),
            ("-config available_models/conf.json", "serve those of OpenNMT-py's server"),
        ),
    ),
}

SUBCOMMANDS = {
    "recipes": Command(
        "recipes",
        "Write the recipes and their data to ./recipes, or elsewhere.",
        "[DIRECTORY]",
        (),
        (("", "write them to ./recipes"),),
    ),
    "completion": Command(
        "completion",
        "Print the script with which a shell completes these commands.",
        "bash | zsh | fish",
        (),
        (
            ("bash > ~/.onmt_llm.bash", "for `source ~/.onmt_llm.bash` in ~/.bashrc"),
            ("zsh > ~/.onmt_llm.zsh", "for `source ~/.onmt_llm.zsh` after compinit in ~/.zshrc"),
            ("fish > ~/.config/fish/conf.d/onmt_llm.fish", "read at the start"),
        ),
    ),
}
"""Commands that exist only as `onmt_llm COMMAND`: they take no options."""


def short_name(command: str) -> str:
    """A command's name after `onmt_llm`: `train`, `release`."""
    return command.removeprefix("onmt_llm_").removesuffix("_model")
