"""Options of `onmt_llm_hub`."""

from __future__ import annotations

from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.section import Section


class HubOptions(Section):
    """The model, the repository and the directory. The token is that of `hf auth login`, or of the environment variable
    `HF_TOKEN`; it is no option, so that it is in no file and no history of commands."""

    folder: str | None = None
    """`upload`: the model: a checkpoint, an adapter, a release or an export; a directory, or one `.gguf` file."""
    repo: str | None = None
    """Repository on the Hugging Face Hub, `OWNER/NAME`. `upload` creates it."""
    dataset: bool = False
    """`download`: the repository is one of a dataset, not of a model."""
    output: str | None = None
    """`download`: directory to write."""
    revision: str | None = None
    """Branch (`download`: or tag, or commit); null = `main`. `upload` creates the branch."""
    private: bool = True
    """`upload`: a repository that is created is private. An existing one stays as it is."""
    commit_message: str | None = None
    """`upload`: message of the commit; null = one that names the model."""
    train_state: bool = False
    """`upload`: also upload the training state of a checkpoint, with which its run can be resumed."""
    force: bool = False
    """`download`: replace an existing output."""


class HubConfig(Section):
    """Upload a model to the Hugging Face Hub, or download a model or a dataset."""

    hub: HubOptions = HubOptions()
    integrity: IntegrityConfig = IntegrityConfig()
