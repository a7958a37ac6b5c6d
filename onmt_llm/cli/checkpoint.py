"""`onmt_llm_checkpoint info | verify | extract_vocabulary`: look into a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from onmt_llm.cli.convert import needed
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import run
from onmt_llm.config.convert import CheckpointOptions
from onmt_llm.config.render import print_config
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.log import setup_logging

USAGE = (
    "onmt_llm_checkpoint info -model CHECKPOINT | verify -model CHECKPOINT | "
    "extract_vocabulary -model CHECKPOINT -out_file FILE -side src"
)


def main(argv: Sequence[str] | None = None) -> int:
    return run(_checkpoint, argv)


def _checkpoint(argv: Sequence[str]) -> int:
    actions = {"info": _info, "verify": _verify, "extract_vocabulary": _extract_vocabulary}
    action, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    loaded = load_job("onmt_llm_checkpoint", rest)
    if loaded.switches["print_config"]:
        print(print_config(loaded))
        return 0
    if action not in actions:
        raise ConfigError(f"The first word must be one of {', '.join(actions)}, but is '{action}'.", hint=USAGE)
    setup_logging()
    return actions[action](loaded.job.checkpoint)


def _info(options: CheckpointOptions) -> int:
    from onmt_llm.checkpoint.store import Checkpoint

    checkpoint = Checkpoint.open(needed("model", options.model, USAGE))
    config = checkpoint.config
    names = checkpoint.names()
    print(f"path         {checkpoint.path}")
    print(f"source       {config.source}")
    print(f"parameters   {sum(prod(checkpoint.shape(name)) for name in names):,} in {len(names)} tensors")
    print(f"tokeniser    {config.tokenizer.kind} {config.tokenizer.file or ''}")
    print(f"template     {config.template}")
    if config.adapter is not None:
        spec = config.adapter
        print(f"adapter      rank {spec.rank}, alpha {spec.alpha:g} on {', '.join(spec.layers)}")
        print(f"base         {spec.base} {spec.base_fingerprint[:16]}")
    print(f"fingerprint  {checkpoint.fingerprint}")
    for field, value in config.model.model_dump(exclude_defaults=True).items():
        print(f"  {field}: {value}")
    return 0


def _verify(options: CheckpointOptions) -> int:
    from onmt_llm.checkpoint.store import Checkpoint

    checkpoint = Checkpoint.open(needed("model", options.model, USAGE))
    damaged = checkpoint.damaged()
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} tensors of {checkpoint.path} are not as written: {', '.join(damaged[:10])}."
        )
    print(f"{len(checkpoint.names())} tensors are as written")
    return 0


def _extract_vocabulary(options: CheckpointOptions) -> int:
    model, output = needed("model", options.model, USAGE), needed("out_file", options.out_file, USAGE)
    from onmt_llm.checkpoint.surgery import extract_vocabulary

    print(f"{extract_vocabulary(model, output, side=options.side)} tokens written to {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
