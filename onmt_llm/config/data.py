"""Options of corpora, vocabularies, pretrained embeddings and batching."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from onmt_llm.config.learning import ObjectiveName
from onmt_llm.config.numbers import (
    INT32,
    INT64,
    BatchSize,
    Count,
    CountOrAll,
    CountOrZero,
    Fraction,
    Positive,
    Real,
    Width,
    WorkersOrZero,
)
from onmt_llm.config.section import DERIVED, Names, Section
from onmt_llm.output_checks import name_problem

FilePaths = str | list[str]
Role = Literal["system", "user", "assistant", "tool"]
TrainOnEos = Literal["turn", "last", "all", "none"]


def _patterns(value: object) -> object:
    """A condition as a list of texts: other scalars as JSON writes them (`true`, `3`)."""
    values = value if isinstance(value, list) else [value]
    return [json.dumps(each) if isinstance(each, bool | int | float) else each for each in values]


Condition = Annotated[list[str], BeforeValidator(_patterns)]
RowLength = Annotated[int, Field(ge=2, le=INT32)]


class CorpusConfig(Section):
    """One corpus, an entry of `data:`. A corpus named `valid` (or `valid_*`) is used for validation."""

    path_src: FilePaths | None = None
    """Text with one example per line: the source side, or the whole text for a language model. Each path here and below
    is a file or a list of files; a file may be a glob pattern (`train.*.txt`), whose matches are read in alphabetical
    order. Files ending in .gz, .zst or .xz are decompressed. `hf://datasets/OWNER/NAME@REVISION/PATH` names files of a
    dataset of the Hugging Face Hub."""
    path_tgt: FilePaths | None = None
    """Target side of `path_src`, line by line: as many files, with as many lines each."""
    path_align: FilePaths | None = None
    """Word alignments of source and target in Pharaoh format (`0-0 1-2 ...`, source first), for `lambda_align`."""
    align_unit: Literal["tokens", "words"] = "tokens"
    """Unit of `path_align`: tokens after the transforms (OpenNMT-py), or words separated by spaces."""
    path_sco: FilePaths | None = None
    """A quality score per line of `path_src`."""
    score_threshold: Real | None = None
    """Drop examples whose score in `path_sco` is lower."""
    path_txt: FilePaths | None = None
    """Plain text for a language model, split into documents."""
    documents_by: Literal["blank_line", "file", "line"] = "blank_line"
    """What ends a document of `path_txt`."""
    path_jsonl: FilePaths | None = None
    """One JSON object per line: `text`, `prompt`/`answer` (or `instruction`/`input`/`output`), or `conversations`."""
    path_json: FilePaths | None = None
    """A JSON array of such objects, as in the Alpaca data."""
    path_table: FilePaths | None = None
    """Table with such columns: .csv (quoted as in RFC 4180), .tsv (tab-separated, no quoting), .parquet, .arrow or
    .feather; the last three need pyarrow. A folder is a dataset of Hugging Face (`save_to_disk`, cache, download)."""
    reader: str | None = None
    """Registered reader of `path_table`, for a format of your own (`plugins`); null = by the file name."""
    dataset_split: str = "train"
    """Split to read of a `path_table` that is a folder of Hugging Face `datasets`."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Field delimiter of `path_table`; null = a comma in .csv, a tab in .tsv."""
    columns: list[str] | None = None
    """Column names of .csv and .tsv files without a header; null = the first row is the header."""
    split: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None
    """Part of the files that belongs to this corpus, in their order: `[0, 0.7]` = the first 70%. With `[0.7, 1]`
    another corpus, e.g. `valid`, has the others; a file belongs to the part in which its beginning lies."""
    path_packed: str | None = None
    """Folder for the tokenised corpus written by `onmt_llm_data pack`. If set, training reads it instead of the text
    and rejects it if files, transforms or tokeniser have changed."""
    path_tokens: str | None = None
    """Folder of existing token shards, written by onmt_llm (packed or merged), litdata or Lit-GPT. They are used as
    they are, without transforms."""
    row_length: RowLength | None = None
    """`path_tokens` from litdata or Lit-GPT: cut the tokens into examples of this length (context length + 1); null =
    one example per document, if document boundaries are known."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Read only records whose fields match: `{language: eu, conversation_id: "!translation_*", score: ">=4"}`. A
    condition is a pattern with `*`, `?` and `[...]`, a comparison with a number, or a list, of which one must hold; `!`
    negates it, and no negated one may hold. A field is a key, one inside others (`meta.language`), or `text`, `src` or
    `tgt` of text files. A field that a record lacks matches nothing."""
    unique_by: list[str] = Field(default_factory=list)
    """Read only the first of the records of the whole corpus in which these fields are equal: `[prompt]`, which is the
    instruction, or the first message of a user, if there is no such key. Records without any of the fields are kept."""
    unique_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`unique_by`: also drop records that share at least this share of their word 3-grams (Jaccard similarity, by
    MinHash) with one before; null = only equal ones."""
    sample: CountOrZero = 0
    """Read this many records, drawn from those that `where` and `unique_by` leave, each with the same chance; 0 =
    all."""
    sample_seed: CountOrZero = 0
    """Seed of `sample`: the records are the same in every run."""
    shuffle: Literal["none", "global"] | None = None
    """As the global `shuffle`, for this corpus; null = the global value."""
    weight: Positive = 1
    """Sampling weight of this corpus. Whole numbers: this many consecutive examples before the next corpus. If any
    weight is fractional (0.7, 0.3), the corpora are interleaved evenly in these proportions."""
    group_by: str | None = None
    """Read this corpus as one for each group of its files, called `<corpus>_<group>`: the column of `group_table` that
    names the group of a file, e.g. `genre`."""
    group_table: str | None = None
    """Table (.csv or .tsv, with a header) that describes the files. The first column has the end of the path of a file
    or of its folder, in any case: `FR/AMI`, or `FR/AMI/train`, for `data/FR/AMI/train.txt`."""
    group_weights: list[str] = Field(default_factory=list)
    """Shares of the groups in `weight`: numeric columns of `group_table`, added up over the rows of a group (`[words,
    turns]`); none = equal shares."""
    src_lang: str | None = None
    """As the global `src_lang`, for this corpus; null = the global value."""
    tgt_lang: str | None = None
    """As the global `tgt_lang`, for this corpus; null = the global value."""
    transforms: Names[str] | None = None
    """Transforms of this corpus; null = the global `transforms`."""
    template: str | None = None
    """Chat template for conversations and for prompts with answers; null = the global `template`, or the checkpoint's.
    Without any, conversations are laid out by `alpaca`, and an answer follows its prompt directly."""
    messages_key: str = "conversations"
    """JSON and tables: key of the list of messages (`conversations` and `messages` are always recognised)."""
    role_key: str | None = None
    """Key of the role of a message; null = `role` (or `from`)."""
    content_key: str | None = None
    """Key of the text of a message; null = `content` (or `value`)."""
    roles: dict[str, list[str]] = Field(default_factory=dict)
    """Names that the data use for the roles `system`, `user`, `assistant` and `tool`, in addition to `human` and `gpt`:
    `{assistant: [bot, model]}`."""
    text_key: str = "text"
    """JSON and tables: key of a complete text."""
    prompt_key: str | None = None
    """Key of the prompt; null = `prompt` (or `instruction`). Keys that are set take precedence over all others."""
    input_key: str = "input"
    """Key of the input that belongs to an instruction; optional in the data."""
    answer_key: str | None = None
    """Key of the answer; null = `answer` (or `output`)."""
    system_key: str | None = None
    """Key of a system prompt; null = none."""
    train_roles: Names[Role] | None = None
    """As the global `train_roles`, for this corpus; null = the global value."""
    train_on_eos: TrainOnEos | None = None
    """As the global `train_on_eos`, for this corpus; null = the global value."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of transforms (`src_prefix`, `langid` ...) that differ for this corpus. They may also be written directly
    among the keys of the corpus."""

    @field_validator("split")
    @classmethod
    def _part(cls, split: list[float] | None) -> list[float] | None:
        if split is not None and split[0] >= split[1]:
            raise ValueError(f"must be two increasing fractions, but is {split}")
        return split

    @property
    def has_keys(self) -> bool:
        """Whether its records have keys or columns."""
        return bool(self.path_jsonl or self.path_json or self.path_table)


def is_for_validation(corpus: str) -> bool:
    """Whether a corpus of this name is for validation."""
    return corpus == "valid" or corpus.startswith("valid_")


class DataConfig(Section):
    """Corpora and how they are read, mixed and transformed."""

    data: dict[str, CorpusConfig] = Field(default_factory=dict)
    """Corpora by name, each with paths, weight and transforms."""
    objective: ObjectiveName = "sft"
    """Training objective. `sft`: supervised learning of the examples. All others are preference optimisation, and need
    JSON objects with `prompt`, `chosen` and `rejected`; `kto` also accepts `prompt`, `completion` and `label` (true =
    desirable)."""
    transforms: Names[str] = Field(default_factory=list)
    """Transforms of every corpus that sets none itself, in this order."""
    src_lang: str = ""
    """Language of the sources, by its code in a multilingual model (`eng_Latn`, `en_XX`, `en`); empty = the model's
    default. The transform `normalize` has rules for some languages."""
    tgt_lang: str = ""
    """Language of the targets, likewise."""
    template: str | None = None
    """Chat template of the model, `alpaca`, `chatml`, `llama2`, `llama3`, `dialogue`, `dialogue_fr` or a Jinja file:
    that of all corpora that name none, and of the checkpoints of the run. null = the one with which the corpora are
    trained, or the checkpoint's."""
    plugins: list[str] = Field(default_factory=list)
    """Python modules, or paths of .py files, to import first; they may register their own transforms."""
    epochs: CountOrZero = 0
    """Number of passes over every corpus; training ends after them, or at `train_steps`. 0 = repeat without limit. With
    `decay_method: cosine` or `linear` set `train_steps` too."""
    mixing_temperature: Positive | None = None
    """Mix corpora in proportion to weight x examples^(1/T): 1 = by size, higher values favour small corpora; null = by
    weight alone. The examples are counted at the start."""
    skip_empty_level: Literal["silent", "warning", "error"] = "warning"
    """Reaction to an empty example: skip it silently, skip it with a warning, or stop the run. Skipped examples are
    counted."""
    on_bad_line: Literal["error", "skip"] = "error"
    """Reaction to an invalid record (not UTF-8, contains a zero byte, not JSON, wrong structure): stop the run, or skip
    it and count it by reason. Damage that would shift lines always stops the run."""
    max_record_bytes: Annotated[int, Field(ge=1024, le=INT32)] = 1 << 23
    """Maximum size of a line, row or document, in bytes. Longer lines are dropped and counted; longer documents are
    split between two words."""
    shuffle: Literal["none", "global"] = "none"
    """`global`: shuffle each training corpus as a whole, in a new order every epoch; for plain files and Arrow
    tables."""
    index_cache: str | None = None
    """Folder for line counts and line indexes of the corpora; null = `<save_model>_index`."""
    zero_out_prompt_loss: bool | None = None
    """Exclude prompts from the loss; null = yes for JSONL prompts and conversations, no for text files."""
    train_roles: Names[Role] = ["assistant"]
    """Conversations: roles whose messages are included in the loss. A message with a key `train` (true, false) or
    `weight` (0, 1) overrides this."""
    train_on_eos: TrainOnEos = "turn"
    """Conversations: end-of-turn tokens to include in the loss: those of trained turns (`turn`), only the `last` one,
    `all`, or `none`."""
    n_src_feats: Annotated[int, Field(ge=0, le=256)] = 0
    """Number of features per source word, written `word￨feature￨feature`; needs the transform `inferfeats`."""
    src_feats_defaults: str | None = None
    """Features for the words of lines without features: `value￨value`."""
    n_sample: CountOrAll = 0
    """Training, if not 0: write this many transformed examples of each corpus to `save_data` and exit; -1 = all.
    `onmt_llm_build_vocab`: number of records to count per corpus; -1 = all, 0 = 5000. `onmt_llm_data report`: the same,
    but 0 = all. `onmt_llm_data sample`: examples per corpus; 0 = 20."""
    save_data: str | None = None
    """Folder for the samples of `n_sample` and the pages of `onmt_llm_data`; null = `<save_model>_data`."""
    dump_samples: bool = False
    """`onmt_llm_build_vocab`: also write samples. (Training writes them whenever `n_sample` is not 0.)"""
    overwrite: bool = False
    """Replace existing samples, vocabularies and subword models."""
    transform_options: dict[str, Section] = Field(default_factory=dict, exclude=True, json_schema_extra=DERIVED)
    """Options of the transforms, by `Transform.section`: each is a section of its own in the configuration. A missing
    section means its defaults."""

    def transforms_of(self, corpus: CorpusConfig) -> list[str]:
        """The transforms of a corpus: its own, or the global ones."""
        return self.transforms if corpus.transforms is None else corpus.transforms

    @property
    def model_transforms(self) -> list[str]:
        """Transforms that determine the tokeniser of a new model: the global ones, or those of the first corpus."""
        listed = [corpus.transforms for corpus in self.data.values() if corpus.transforms]
        return self.transforms or (listed[0] if listed else [])

    @field_validator("data")
    @classmethod
    def _names(cls, corpora: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
        for name in corpora:
            if problem := name_problem(name):
                raise ValueError(f"must give corpora names that are valid file names, but {name[:60]!r} {problem}")
        return corpora


class VocabularyConfig(Section):
    """Vocabulary files. Not needed with `train_from`: the checkpoint contains its vocabulary."""

    src_vocab: str | None = None
    """Vocabulary file of the source side (or of both sides, with `share_vocab`)."""
    tgt_vocab: str | None = None
    """Vocabulary file of the target side."""
    feat_vec_size: Width | None = None
    """Embedding size of each source feature, with `feat_merge: concat`; null = by `feat_vec_exponent`."""
    feat_vec_exponent: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The embedding size of a feature with N values is N to the power of this."""
    share_vocab: bool = False
    """Use one vocabulary for source and target."""
    src_vocab_size: CountOrZero = 0
    """Maximum size of the source (or shared) vocabulary, including special tokens; 0 = the whole file."""
    tgt_vocab_size: CountOrZero = 0
    """Maximum size of the target vocabulary, including special tokens; 0 = the whole file."""
    src_words_min_frequency: CountOrZero = 0
    """Drop tokens with a lower count from the source (or shared) vocabulary."""
    tgt_words_min_frequency: CountOrZero = 0
    """Drop tokens with a lower count from the target vocabulary."""
    vocab_size_multiple: Width = 8
    """Pad the vocabulary of a new model to a multiple of this; that of a checkpoint is not changed."""
    decoder_start_token: str | None = None
    """Start token of every target, or of the texts of a language model; null = the checkpoint's, or `<s>`; empty = a
    language model has none."""
    default_specials: list[str] = Field(default_factory=lambda: ["<unk>", "<blank>", "<s>", "</s>"])
    """Special tokens at the start of a new vocabulary."""


class EmbeddingsConfig(Section):
    """Pretrained word vectors for a new model, or for the new tokens of `update_vocab`."""

    both_embeddings: str | None = None
    """Text file of vectors for both sides: `token value value ...`, with `hidden_size` values per line."""
    src_embeddings: str | None = None
    """Vectors for the source side only."""
    tgt_embeddings: str | None = None
    """Vectors for the target side only."""
    embeddings_type: Literal["GloVe", "word2vec"] = "GloVe"
    """File format; `word2vec` files start with a header line."""
    freeze_word_vecs_enc: bool = False
    """Freeze the encoder's embeddings."""
    freeze_word_vecs_dec: bool = False
    """Freeze the decoder's embeddings (and, with `tie_embeddings`, the output layer)."""


class BatchConfig(Section):
    """Batch size, bucketing, packing and data workers."""

    batch_size: BatchSize = 64
    """Size of a micro-batch per process, in examples (`sents`) or in tokens including padding (`tokens`)."""
    batch_type: Literal["sents", "tokens"] = "sents"
    """Unit of `batch_size`."""
    batch_size_multiple: Count = 1
    """Round the number of examples in a batch down to a multiple of this, if there are enough."""
    valid_batch_size: BatchSize = 32
    """As `batch_size`, for validation."""
    bucket_size: BatchSize = 2048
    """Number of examples that are sorted by length together before they are cut into batches."""
    packing: Literal["off", "pack", "split", "wrap"] = "off"
    """Pack several documents into each training row instead of padding. `pack`: whole examples, best fit. `split`: the
    same, but examples longer than a row are split into rows. `wrap`: one token stream, cut at every end of a row.
    Encoder-decoders support only `pack`."""
    packing_length: RowLength | None = None
    """Length of a packed row in tokens; null = `batch_size` with `batch_type: tokens`, one row per batch."""
    isolate_documents: bool = True
    """Prevent attention between the documents of a packed row, and start each at position 0."""
    num_workers: WorkersOrZero = 0
    """Background data workers that prepare batches; 0 = the training process itself. The batches do not depend on their
    number."""
    worker_type: Literal["process", "thread"] = "process"
    """`process`: each worker is a process; `thread`: each is a thread of the training process, which needs less
    memory."""
    prefetch_factor: Annotated[int, Field(ge=1, le=4096)] = 4
    """Batches to prepare in advance per worker, in pinned memory for CUDA."""
    data_seed: Annotated[int, Field(ge=0, le=INT64)] | None = None
    """Seed of the data order; null = `seed`."""
