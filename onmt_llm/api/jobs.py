"""`train`, `build_vocab`, `convert` and `release`, and `load_config`: the commands of these names, in Python.

Torch is imported after the options have been checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.api.options import Config, given, load_options
from onmt_llm.cli import build_vocab as vocabulary_command
from onmt_llm.cli import convert as convert_command
from onmt_llm.cli import release as release_command
from onmt_llm.cli import train as train_command
from onmt_llm.cli.run import perform
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.train import TrainConfig

if TYPE_CHECKING:
    from onmt_llm.releasing.formats import ReleaseReport
    from onmt_llm.training.result import TrainResult


def train(config: Config = None, **options: Any) -> TrainResult:
    """Train or fine-tune a model, as `onmt_llm_train` does.

    Ctrl-C ends the run with a checkpoint, as it ends the command. The run is logged to the logger "onmt_llm"; before
    the first call, `logging.basicConfig(level="INFO")` shows it.

    Examples:
        >>> result = onmt_llm.train("run.yaml", train_steps=5)
        >>> result.step, str(result.checkpoint)
        (5, 'run/model_step_5')
        >>> onmt_llm.train("run.yaml", train_stepz=5)
        Traceback (most recent call last):
        onmt_llm.errors.ConfigError: 'train_stepz' is not a known option: did you mean 'train_steps'?

    Args:
        config: Path of a YAML file, a dict of options, or what `load_config` returned.
        **options: Options of `onmt_llm_train` by name; they override those of `config`.

    Returns:
        How the run ended, with its newest checkpoint.

    Raises:
        OnmtLlmError: All mistakes in the options together, as the command reports them; later, anything else that the
            user can fix.
    """
    return perform(_train, load_options(train_command.JOB, config, options))


def _train(loaded: Loaded[Any]) -> TrainResult:
    from onmt_llm.training.train import train

    return train(loaded.job)


def load_config(config: Config = None, **options: Any) -> TrainConfig:
    """Check the options of a training run, and return them with their defaults; nothing is trained.

    Examples:
        >>> config = onmt_llm.load_config("run.yaml", train_steps=5)
        >>> config.run.train_steps, config.optimizer.optim
        (5, 'adamw')

    Args:
        config: As in `train`.
        **options: As in `train`.

    Raises:
        OnmtLlmError: All mistakes in the options, as `onmt_llm_train` reports them.
    """
    job: TrainConfig = load_options(train_command.JOB, config, options).job
    return job


def build_vocab(config: Config = None, **options: Any) -> dict[Path, int]:
    """Count the tokens of the corpora and write the vocabularies of a new model, as `onmt_llm_build_vocab` does.

    Examples:
        >>> onmt_llm.build_vocab("run.yaml", src_vocab="run/letters.txt", overwrite=True)
        {PosixPath('run/letters.txt'): 5}

    Args:
        config: Path of a YAML file (that of the training run will do), or a dict of options.
        **options: Options of `onmt_llm_build_vocab` by name; they override those of `config`.

    Returns:
        The number of tokens in each file.

    Raises:
        OnmtLlmError: Mistakes in the options; a file exists already; a corpus cannot be read.
    """
    return perform(vocabulary_command.build, load_options(vocabulary_command.JOB, config, options))


def convert(
    model_dir: str | Path | None = None, output: str | Path | None = None, *, config: Config = None, **options: Any
) -> Path:
    """Convert another toolkit's model to a checkpoint or, with `to`, a checkpoint to another toolkit's format.

    Examples:
        >>> onmt_llm.convert("llama", "llama_hf", to="hf")
        PosixPath('llama_hf')
        >>> onmt_llm.convert("llama_hf", "llama_again", dtype="bf16")
        PosixPath('llama_again')

    Args:
        model_dir: Folder or file of the model.
        output: Folder or file to write.
        config: Path of a YAML file, or a dict of options.
        **options: Options of `onmt_llm_convert` by name: `to`, `source`, `dtype`, `force` ...

    Returns:
        The path of what was written.

    Raises:
        OnmtLlmError: Mistakes in the options; the model is damaged or of an unknown kind; the output exists.
    """
    values = {**given(model_dir=model_dir, output=output), **options}
    return perform(convert_command.convert_model, load_options(convert_command.JOB, config, values))


def release(
    model: str | Path | None = None, output: str | Path | None = None, *, config: Config = None, **options: Any
) -> ReleaseReport:
    """Write a checkpoint in the format in which it is served, verified against it, as `release_model` does.

    Examples:
        >>> report = onmt_llm.release("llama", "llama_int8", quantization="int8")
        >>> report["verdict"]
        'pass'

    Args:
        model: The checkpoint.
        output: Folder or file to write.
        config: Path of a YAML file, or a dict of options.
        **options: Options of `release_model` by name: `format`, `quantization`, `verify`, `force` ...

    Returns:
        The report of the comparison, as in `release_report.json`.

    Raises:
        OnmtLlmError: Mistakes in the options; the format cannot express the model; the release differs from it.
    """
    values = {**given(model=model, output=output), **options}
    return perform(release_command.release_model, load_options(release_command.JOB, config, values))
