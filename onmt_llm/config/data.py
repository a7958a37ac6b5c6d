"""Options of corpora, vocabularies and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from onmt_llm.config.numbers import (
    INT32,
    INT64,
    BatchSize,
    Count,
    CountOrAll,
    CountOrZero,
    Positive,
    Real,
    Width,
    WorkersOrZero,
)
from onmt_llm.config.section import Section
from onmt_llm.output_checks import name_problem

FilePaths = str | list[str]
Role = Literal["system", "user", "assistant", "tool"]
TrainOnEos = Literal["turn", "last", "all", "none"]
RowLength = Annotated[int, Field(ge=2, le=INT32)]


class CorpusConfig(Section):
    """One entry of `data:`. The corpus named `valid` (or `valid_*`) is for validation."""

    path_src: FilePaths | None = None
    """Text, one example a line: the source side, or the whole text of a language-model example. Here and in every
    other path: a file or a list of files, each of which may be a pattern (`train.*.txt`), read in the order of their
    names; text ending in .gz, .zst or .xz is decompressed."""
    path_tgt: FilePaths | None = None
    """Line by line the target side of `path_src`: as many files, with as many lines each."""
    path_align: FilePaths | None = None
    """Word alignments of the two, in Pharaoh's format (`0-0 1-2 ...`, source first), for `lambda_align`."""
    align_unit: Literal["tokens", "words"] = "tokens"
    """What `path_align` counts: tokens as the transforms leave them (OpenNMT-py), or words between spaces."""
    path_sco: FilePaths | None = None
    """A number for every line of `path_src`: how good the example is."""
    score_threshold: Real | None = None
    """Examples with a lower number in `path_sco` are left out."""
    path_txt: FilePaths | None = None
    """Plain text for a language model, in documents."""
    documents_by: Literal["blank_line", "file", "line"] = "blank_line"
    """What ends a document of `path_txt`."""
    path_jsonl: FilePaths | None = None
    """One JSON object a line: `text`, `prompt`/`answer` (or `instruction`/`input`/`output`), or `conversations`."""
    path_json: FilePaths | None = None
    """A JSON array of such objects, as Alpaca's data come."""
    path_table: FilePaths | None = None
    """Rows with such columns: .csv (quotes as in RFC 4180), .tsv (a tab parts fields, a quote is a character),
    .parquet, .arrow or .feather; the last three need pyarrow."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """What parts the fields of `path_table`; null = a comma in .csv, a tab in .tsv."""
    columns: list[str] | None = None
    """Names of the columns of .csv and .tsv files that have no header; null = the first row names them."""
    path_packed: str | None = None
    """Folder in which `onmt_llm_data pack` puts this corpus, tokenised. Where it is given, training reads that instead
    of the text, and refuses what is not of these files, transforms and tokeniser."""
    path_tokens: str | None = None
    """Token shards that are there already: a folder of onmt_llm's (packed or merged), of litdata's or of Lit-GPT's.
    They are taken as they are, without transforms."""
    row_length: RowLength | None = None
    """`path_tokens`: cut litdata's or Lit-GPT's tokens into examples of this many (the context length, and one); null =
    one example a document, where documents are known."""
    shuffle: Literal["none", "global"] | None = None
    """As the global `shuffle`, for this corpus; null = as that says."""
    weight: Positive = 1
    """Share of this corpus. Whole numbers: so many examples in a row before the next corpus has its turn; with a
    fraction among the weights (0.7, 0.3) the corpora are interleaved evenly in these proportions."""
    transforms: list[str] | None = None
    """Transforms of this corpus; null = the global `transforms`."""
    template: str | None = None
    """Chat template of `conversations` and prompt/answer examples; null = the checkpoint's, or `alpaca`."""
    messages_key: str = "conversations"
    """JSON and tables: key of the list of turns (`conversations` and `messages` are understood too)."""
    role_key: str | None = None
    """Key of a turn's role; null = `role` (or `from`)."""
    content_key: str | None = None
    """Key of a turn's text; null = `content` (or `value`)."""
    roles: dict[str, list[str]] = Field(default_factory=dict)
    """What the data call the roles `system`, `user`, `assistant` and `tool`, besides `human` and `gpt`:
    `{assistant: [bot, model]}`."""
    text_key: str = "text"
    """JSON and tables: key of a whole text."""
    prompt_key: str | None = None
    """Key of the question; null = `prompt` (or `instruction`). Named keys come before all others."""
    input_key: str = "input"
    """Key of what the instruction is about; it may be missing."""
    answer_key: str | None = None
    """Key of the answer; null = `answer` (or `output`)."""
    system_key: str | None = None
    """Key of a system text that goes before the question; null = there is none."""
    train_roles: list[Role] | None = None
    """As the global `train_roles`, for this corpus; null = as that says."""
    train_on_eos: TrainOnEos | None = None
    """As the global `train_on_eos`, for this corpus; null = as that says."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of transforms (`src_prefix`, `langid` ...) that have other values in this corpus than elsewhere. They may
    stand among the keys of the corpus, too."""

    @property
    def has_keys(self) -> bool:
        """Its records have keys, or columns."""
        return bool(self.path_jsonl or self.path_json or self.path_table)


class DataConfig(Section):
    """Corpora and what happens to them on the fly."""

    data: dict[str, CorpusConfig] = Field(default_factory=dict)
    """Corpora by name: paths, weight and transforms of each."""
    objective: Literal["sft", "dpo", "orpo", "kto"] = "sft"
    """What is learned: `sft`, the examples themselves; or which answers are better: `dpo` and `orpo` from JSON objects
    with `prompt`, `chosen` and `rejected`, `kto` from `prompt`, `completion` and `label` (true = good) too."""
    transforms: list[str] = Field(default_factory=list)
    """Transforms applied to every corpus that names none itself, in this order."""
    plugins: list[str] = Field(default_factory=list)
    """Python modules, or paths of .py files, that are loaded first: they may register transforms of their own."""
    epochs: CountOrZero = 0
    """Passes over every corpus, after which training ends (or at `train_steps`); 0 = corpora begin again for ever."""
    mixing_temperature: Positive | None = None
    """Mix corpora in proportion to weight x examples^(1/T): 1 = by size, higher = small ones come more often; null =
    by weight alone. The examples are counted at the start."""
    skip_empty_level: Literal["silent", "warning", "error"] = "warning"
    """What an empty example does: it is counted and skipped, with a warning, or stops the run."""
    on_bad_line: Literal["error", "skip"] = "error"
    """What a record does that is not UTF-8, holds a zero byte, is not JSON, or not as it should be: it stops the run,
    or it is left out and counted by reason. Damage that would shift lines always stops the run."""
    max_record_bytes: Annotated[int, Field(ge=1024, le=INT32)] = 1 << 23
    """Longest line, row or document, in bytes: a longer line is left out and counted, a longer document is cut between
    two words."""
    shuffle: Literal["none", "global"] = "none"
    """`global`: every epoch of a training corpus has an order of its own, in which any example may come anywhere; for
    plain files and Arrow tables."""
    index_cache: str | None = None
    """Folder for the line counts and indexes of corpora; null = `<save_model>_index`."""
    zero_out_prompt_loss: bool | None = None
    """The loss counts answers only, not prompts; null = in JSONL prompts and conversations, but not in text files."""
    train_roles: list[Role] = ["assistant"]
    """Conversations: roles whose turns the loss counts. A turn that has a key `train` (true, false) or `weight` (0, 1)
    goes by that."""
    train_on_eos: TrainOnEos = "turn"
    """Conversations: which of the tokens that end a turn the loss counts: those of trained turns, the `last` of all,
    `all`, or `none`."""
    n_src_feats: Annotated[int, Field(ge=0, le=256)] = 0
    """Features that every source word carries, written `word￨feature￨feature`; needs the transform `inferfeats`."""
    src_feats_defaults: str | None = None
    """Features of the words of a line that has none: `value￨value`."""
    n_sample: CountOrAll = 0
    """Training, above 0: write this many transformed examples of each corpus below `save_data` and exit; -1 = all.
    `onmt_llm_build_vocab`: count the first so many records of each corpus; -1 = all, 0 = 5000.
    `onmt_llm_data report`: the same, 0 = all; `onmt_llm_data sample`: examples of each corpus, 0 = 20."""
    save_data: str | None = None
    """Folder for the samples that `n_sample` writes, and for the pages of `onmt_llm_data`; null =
    `<save_model>_data`."""
    dump_samples: bool = False
    """`onmt_llm_build_vocab`: write samples too. Training writes them whenever `n_sample` is not 0."""
    overwrite: bool = False
    """Replace samples, vocabularies and subword models that are there already."""

    @property
    def model_transforms(self) -> list[str]:
        """Transforms that a new model's tokeniser is read off: the global ones, or else those of the first corpus."""
        listed = [corpus.transforms for corpus in self.data.values() if corpus.transforms]
        return self.transforms or (listed[0] if listed else [])

    @field_validator("data")
    @classmethod
    def _names(cls, corpora: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
        for name in corpora:
            if problem := name_problem(name):
                raise ValueError(f"must give corpora names that files can have, but {name[:60]!r} {problem}")
        return corpora


class VocabularyConfig(Section):
    """Vocabulary files; a checkpoint given as `train_from` brings its own."""

    src_vocab: str | None = None
    """Vocabulary of the source side (or of both, with `share_vocab`)."""
    tgt_vocab: str | None = None
    """Vocabulary of the target side."""
    feat_vec_size: Width | None = None
    """Width of the embedding of each source feature, with `feat_merge: concat`; null = by `feat_vec_exponent`."""
    feat_vec_exponent: Annotated[float, Field(gt=0, le=1)] = 0.7
    """A feature with N values gets an embedding of width N to the power of this."""
    share_vocab: bool = False
    """Source and target use one vocabulary."""
    src_vocab_size: CountOrZero = 0
    """Most tokens of the source vocabulary (or of the shared one), special tokens included; 0 = all of the file."""
    tgt_vocab_size: CountOrZero = 0
    """Most tokens of the target vocabulary, special tokens included; 0 = all of the file."""
    src_words_min_frequency: CountOrZero = 0
    """Leave out tokens that the source vocabulary (or the shared one) counts fewer times."""
    tgt_words_min_frequency: CountOrZero = 0
    """Leave out tokens that the target vocabulary counts fewer times."""
    vocab_size_multiple: Width = 8
    """A new model's vocabulary is padded to a multiple of this; a checkpoint's is left alone."""
    decoder_start_token: str | None = None
    """Token that starts every target; null = the checkpoint's, or `<s>`."""
    default_specials: list[str] = Field(default_factory=lambda: ["<unk>", "<blank>", "<s>", "</s>"])
    """Special tokens that a new vocabulary begins with."""


class EmbeddingsConfig(Section):
    """Word vectors from elsewhere for a new model, or for the new tokens of `update_vocab`."""

    both_embeddings: str | None = None
    """Text file of vectors for both sides: `token value value ...`, each as wide as `hidden_size`."""
    src_embeddings: str | None = None
    """The same, for the source side."""
    tgt_embeddings: str | None = None
    """The same, for the target side."""
    embeddings_type: Literal["GloVe", "word2vec"] = "GloVe"
    """`word2vec` files begin with a line that holds their size."""
    freeze_word_vecs_enc: bool = False
    """The encoder's embeddings are not trained."""
    freeze_word_vecs_dec: bool = False
    """The decoder's embeddings (and with `tie_embeddings` the output layer) are not trained."""


class BatchConfig(Section):
    """How examples become batches."""

    batch_size: BatchSize = 64
    """Examples (`sents`) or tokens, padding included (`tokens`), of one micro-batch."""
    batch_type: Literal["sents", "tokens"] = "sents"
    """What `batch_size` counts."""
    batch_size_multiple: Count = 1
    """Round the number of examples of a batch down to a multiple of this, where there are enough."""
    valid_batch_size: BatchSize = 32
    """As `batch_size`, in validation."""
    bucket_size: BatchSize = 2048
    """Examples that are sorted by length together before they are cut into batches."""
    packing: Literal["off", "pack", "split", "wrap"] = "off"
    """Training rows of several documents instead of padding. `pack`: whole examples, best fit; `split`: the same, but
    examples longer than a row are cut into rows; `wrap`: one stream, cut wherever a row ends. An encoder-decoder can
    only `pack`."""
    packing_length: RowLength | None = None
    """Tokens of a packed row; null = `batch_size` with `batch_type: tokens`, one row a batch."""
    isolate_documents: bool = True
    """Documents of a packed row do not see each other, and each begins at position 0."""
    num_workers: WorkersOrZero = 0
    """Background workers that prepare batches; 0 = the training process itself. Their number changes no batch."""
    worker_type: Literal["process", "thread"] = "process"
    """`process`: as many processes; `thread`: one thread of the training process, which needs less memory."""
    prefetch_factor: Annotated[int, Field(ge=1, le=4096)] = 4
    """Batches per worker that stand ready for the trainer, in pinned memory for CUDA."""
    data_seed: Annotated[int, Field(ge=0, le=INT64)] | None = None
    """Seed of the order of the data; null = `seed`."""
