"""Parity with OpenNMT-py 3.5.1 in both directions.

tests/data/opennmt holds tiny models that it trained and the logits that it computes for a padded batch, made by
tests/oracle/make_opennmt_fixtures.py. The slow tests run OpenNMT-py itself, where ONMT_PY_PYTHON names its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import onmt_llm
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.imported import NOTHING_ASKED
from onmt_llm.checkpoint.formats.opennmt.read import open_opennmt
from onmt_llm.checkpoint.formats.opennmt.write import export_opennmt
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.cli import convert as convert_command
from onmt_llm.cli.jobs import load_job
from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens
from onmt_llm.config.compat.opennmt_table import read_options
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import FeatureConfig, ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.vocab import Vocab
from onmt_llm.training.setup.start import open_start
from tests.tiny import write_checkpoint

HERE = Path(__file__).parents[1]
DATA = HERE / "data" / "opennmt"
NAMES = sorted(file.stem for file in DATA.glob("*.pt"))
ORACLE = os.environ.get("ONMT_PY_PYTHON", "")
with_opennmt_py = pytest.mark.skipif(not ORACLE, reason="ONMT_PY_PYTHON names no Python with OpenNMT-py 3.5.1")

Batch = dict[str, torch.Tensor]


def read_batch(file: Path) -> Batch:
    with np.load(file) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.no_grad()
def our_logits(path: Path, batch: Batch) -> torch.Tensor:
    model = load_model(path)
    if model.config.is_decoder_only:
        return model(batch["tgt"])
    mask_BS = torch.arange(batch["src"].shape[1]) < batch["src_length"][:, None]
    features = {"features_BSF": batch["feats"][..., None]} if "feats" in batch else {}
    return model(batch["src"], batch["tgt"], src_mask_BS=mask_BS, **features)


@torch.no_grad()
def our_stepwise_logits(path: Path, batch: Batch) -> torch.Tensor:
    """One token after the other, with the cache."""
    model = load_model(path)
    memory: dict[str, torch.Tensor] = {}
    if not model.config.is_decoder_only:
        mask_BS = torch.arange(batch["src"].shape[1]) < batch["src_length"][:, None]
        memory = {"memory_BSD": model.encode(batch["src"], mask_BS), "src_mask_BS": mask_BS}
    cache = KVCache(model.config.decoder_layers)
    hidden = [model.decode(ids_B1, cache=cache, **memory) for ids_B1 in batch["tgt"].split(1, dim=1)]
    return model.logits(torch.cat(hidden, dim=1))


def distance(one: torch.Tensor, other: torch.Tensor, batch: Batch) -> float:
    """Largest difference of logits at the real tokens of the target."""
    real_BT = torch.arange(batch["tgt"].shape[1]) < batch["tgt_length"][:, None]
    return float((one - other)[real_BT].abs().max())


IN_FILES = {"data", "src_vocab", "tgt_vocab", "save_data", "save_model", "config", "train_from"}


def its_yaml(file: Path, folder: Path) -> Path:
    """The YAML that OpenNMT-py trained a model from: every option that has not its default."""
    defaults = read_options((HERE / "data/opennmt_options.txt").read_text(encoding="utf-8"))["onmt_train"]
    content = torch.load(file, map_location="cpu", weights_only=False)
    options, vocab = vars(content["opt"]), content["vocab"]
    written = {
        name: value
        for name, value in options.items()
        if name in defaults and name not in IN_FILES and value not in (defaults[name], (), "")
    }
    sides = {"src": vocab["src"], "tgt": vocab["tgt"]}
    for side, tokens in sides.items():
        (folder / f"{side}.vocab").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        (folder / f"{side}.txt").write_text("a\n", encoding="utf-8")
    for number, tokens in enumerate(vocab.get("src_feats", [])):
        (folder / f"src.vocab_feat{number}").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    shared = written.get("share_vocab")
    corpus = {"path_src": f"{folder}/src.txt", "transforms": ["inferfeats"] if "src_feats" in vocab else []}
    if written.get("model_task") != "lm":
        corpus["path_tgt"] = f"{folder}/tgt.txt"
    written |= {"data": {"corpus": corpus}, "src_vocab": f"{folder}/src.vocab"}
    written |= {} if shared else {"tgt_vocab": f"{folder}/tgt.vocab"}
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_in_its_names_builds_the_model_that_it_builds(name: str, tmp_path: Path) -> None:
    """Sizes, biases, norms and positions, and so the number of parameters."""
    loaded = load_job("onmt_llm_train", ["-config", str(its_yaml(DATA / f"{name}.pt", tmp_path))])
    built, stored = open_start(loaded.job).model, open_opennmt(DATA / f"{name}.pt", NOTHING_ASKED).model
    # the table of sines of a model with concatenated features is no parameter there, but is of an odd width
    kept = {"position", "max_position"} if stored.position == "learned" else set()
    assert built.model_dump(exclude=kept) == stored.model_dump(exclude=kept)


def run_oracle(action: str, *arguments: str) -> str:
    script = HERE / "oracle" / "make_opennmt_fixtures.py"
    done = subprocess.run([ORACLE, "-W", "ignore", script, action, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_its_checkpoints_keep_their_logits(tmp_path: Path, name: str) -> None:
    convert(DATA / f"{name}.pt", tmp_path / "ours")
    batch = read_batch(DATA / f"{name}.npz")
    assert distance(our_logits(tmp_path / "ours", batch), batch["logits"], batch) <= 1e-5


@pytest.mark.parametrize("format", ["pytorch", "safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_in_out_in_is_bit_exact(tmp_path: Path, name: str, format: Any) -> None:
    first = Checkpoint.open(convert(DATA / f"{name}.pt", tmp_path / "first"))
    file = export_opennmt(first, tmp_path / "there", format=format, shard_size="10KB")
    second = Checkpoint.open(convert(file, tmp_path / "second"))
    sidecars = len(list(tmp_path.glob("there.*.safetensors")))
    assert sidecars == 0 if format == "pytorch" else sidecars > 1
    # The table of positions was cut to 40 rows to make the fixture small; OpenNMT-py wants 5000.
    tables = [tensor for tensor in first.names() if tensor.endswith("embed_positions.weight")]
    assert (
        second.config.model.model_copy(update={"max_position": first.config.model.max_position}) == first.config.model
    )
    assert all(torch.equal(second.tensor(t)[:40], first.tensor(t)) for t in tables)
    assert all(torch.equal(second.tensor(t), first.tensor(t)) for t in first.names() if t not in tables)
    assert tables or second.fingerprint == first.fingerprint
    assert second.config.specials == first.config.specials
    assert [file.read_text() for file in second.files()] == [file.read_text() for file in first.files()]


WINDOWS = ["lm_window", "s2s_window"]


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_counts_the_token_itself_here_and_those_before_it_there(tmp_path: Path, name: str) -> None:
    theirs = torch.load(DATA / f"{name}.pt", weights_only=False)["opt"]
    ours = Checkpoint.open(convert(DATA / f"{name}.pt", tmp_path / "ours"))
    batch = read_batch(DATA / f"{name}.npz")
    assert theirs.sliding_window == 3 and ours.config.model.sliding_window == 4 < batch["tgt"].shape[1]
    # Ours decodes with what it was trained with.
    assert distance(our_stepwise_logits(ours.path, batch), batch["logits"], batch) <= 1e-5
    back = export_opennmt(ours, tmp_path / "back")
    assert torch.load(back, weights_only=False)["opt"].sliding_window == 3


def test_its_translations_see_one_token_less_than_its_training(tmp_path: Path) -> None:
    batch = read_batch(DATA / "s2s_window.npz")
    assert distance(batch["stepwise"], batch["logits"], batch) > 0.1
    content = torch.load(DATA / "s2s_window.pt", weights_only=False)
    content["opt"].sliding_window -= 1
    torch.save(content, tmp_path / "narrower.pt")
    ours = convert(tmp_path / "narrower.pt", tmp_path / "ours")
    for logits in (our_stepwise_logits(ours, batch), our_logits(ours, batch)):
        assert distance(logits, batch["stepwise"], batch) <= 1e-5


def test_half_precision_old_names_and_alignments(tmp_path: Path) -> None:
    content = torch.load(DATA / "s2s_sinusoidal.pt", weights_only=False)
    old = {"layer_norm.weight": "layer_norm.a_2", "layer_norm.bias": "layer_norm.b_2"}
    for new, name in old.items():
        content["model"] = {key.replace(new, name): tensor.half() for key, tensor in content["model"].items()}
    content["generator"] = {f"0.{name}": tensor.half() for name, tensor in content["generator"].items()}
    content["opt"] = Namespace(
        **{**vars(content["opt"]), "lambda_align": 0.05, "alignment_layer": 1, "average_decay": 1e-4}
    )
    torch.save(content, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "ours")
    config = Checkpoint.open(tmp_path / "ours").config
    assert config.model.dtype == "fp16"
    assert (config.alignment_layer, config.alignment_heads, config.full_context_alignment) == (1, 0, False)
    export_opennmt(tmp_path / "ours", tmp_path / "back")
    opt = torch.load(tmp_path / "back.pt", weights_only=False)["opt"]
    assert (opt.alignment_layer, opt.alignment_heads, opt.full_context_alignment) == (1, 0, False)
    batch = read_batch(DATA / "s2s_sinusoidal.npz")
    model = load_model(tmp_path / "ours", dtype="fp32")
    with torch.no_grad():
        mask_BS = torch.arange(batch["src"].shape[1]) < batch["src_length"][:, None]
        assert distance(model(batch["src"], batch["tgt"], src_mask_BS=mask_BS), batch["logits"], batch) <= 2e-2


def test_the_table_of_positions_in_the_file_counts(tmp_path: Path) -> None:
    content = torch.load(DATA / "s2s_sinusoidal.pt", weights_only=False)
    table = torch.randn(5000, 1, 16)
    for side in ("encoder", "decoder"):
        content["model"][f"{side}.embeddings.make_embedding.pe.pe"] = table
    torch.save(content, tmp_path / "own.pt")
    ours = Checkpoint.open(convert(tmp_path / "own.pt", tmp_path / "ours"))
    assert ours.config.model.position == "learned"
    assert torch.equal(ours.tensor("decoder.embed_positions.weight"), table[:, 0])


def test_what_is_refused_by_name(tmp_path: Path) -> None:
    content = torch.load(DATA / "lm_rotary.pt", weights_only=False)
    for change in ({"quant_type": "awq_gemm"}, {"self_attn_type": "average"}, {"generator_function": "sparsemax"}):
        torch.save({**content, "opt": Namespace(**{**vars(content["opt"]), **change})}, tmp_path / "model.pt")
        with pytest.raises(UnsupportedError, match=": ".join(next(iter(change.items())))):
            convert(tmp_path / "model.pt", tmp_path / "ours")
    content = torch.load(DATA / "s2s_features_sum.pt", weights_only=False)
    torch.save({**content, "opt": Namespace(**{**vars(content["opt"]), "feat_merge": "mlp"})}, tmp_path / "model.pt")
    with pytest.raises(UnsupportedError, match="feat_merge: mlp"):
        convert(tmp_path / "model.pt", tmp_path / "ours")


FRAMES: dict[str, dict[str, Any]] = {
    "NLLB": {
        "sequences": {
            **{"src_prefix": ["{src_lang}"], "src_suffix": ["</s>"], "decoder_start": ["</s>", "{tgt_lang}"]},
        },
        "languages": {"tokens": {"de": "__de__", "fr": "__fr__"}, "src": "de", "tgt": "fr"},
        "specials": {"pad": "<pad>", "add_bos": False},
    },
    "mBART": {
        "sequences": {"src_suffix": ["</s>", "{src_lang}"], "decoder_start": ["{tgt_lang}"]},
        "languages": {"tokens": {"de": "__de__", "fr": "__fr__"}, "src": "de", "tgt": "fr"},
        "specials": {"pad": "<pad>", "add_bos": False},
    },
    "T5": {
        "sequences": {"src_suffix": ["</s>"], "decoder_start": ["<pad>"]},
        "specials": {"bos": None, "pad": "<pad>", "add_bos": False},
    },
}
"""Tokens around the texts of models like those."""
BASE: dict[str, Any] = {"hidden_size": 24, "heads": 4, "ffn_size": 32, "vocab_size": 30, "decoder_layers": 2}
OWN: dict[str, dict[str, Any]] = {
    "tied_and_not_scaled": {
        **{"encoder_layers": 2, "position": "sinusoidal", "tie_embeddings": True, "share_embeddings": True},
    },
    "learned": {"position": "learned", "max_position": 40, "ffn_bias": True, "dtype": "fp16"},
    "t5": {
        **{"encoder_layers": 2, "position": "t5", "relative_shared": True, "scale_attention": False},
        **{"scale_logits": True, "tie_embeddings": True, "norm": "rmsnorm", "ffn_gated": True, "activation": "gelu"},
        **{"relative_buckets": 8, "relative_max_distance": 12},
    },
    "some_biases": {
        "position": "rotary",
        "attn_bias": True,
        "norm_bias": False,
        "kv_heads": 2,
        "scale_embeddings": True,
    },
    "theta": {
        **{"position": "rotary", "rope": RopeConfig(theta=1e6, rotary_dim=4), "encoder_layers": 1},
        **{"src_vocab_size": 25, "norm": "rmsnorm", "ffn_gated": True, "activation": "silu"},
    },
    "parallel": {"position": "alibi", "parallel_residual": True, "attn_out_bias": True, "lm_head_bias": True},
    "shaw": {"position": "shaw", "relative_positions": 3, "encoder_layers": 2, "activation": "gelu", "ffn_bias": True},
    "features": {
        **{"position": "sinusoidal", "encoder_layers": 1, "scale_embeddings": True, "sinusoid": "standard"},
        "src_features": [FeatureConfig(vocab_size=6, size=4), FeatureConfig(vocab_size=7, size=4)],
    },
    "nothing": {"position": "none", "dtype": "bf16"},
    "window": {"position": "rotary", "sliding_window": 3},
    "window_beside_an_encoder": {"position": "alibi", "encoder_layers": 1, "sliding_window": 2},
}


def make_own(path: Path, config: ModelConfig) -> Checkpoint:
    """A checkpoint of ours with random weights."""
    generator = torch.Generator().manual_seed(0)
    specials = SpecialTokens(pad="<pad>")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.dtype]

    def tokens(count: int, letter: str) -> Vocab:
        return Vocab(["<pad>", "<unk>", "<s>", "</s>", *(f"{letter}{i}" for i in range(count - 4))], specials)

    with CheckpointWriter(path, CheckpointConfig(model=config, specials=specials)) as writer:
        for name, shape in parameter_shapes(config).items():
            writer.add(name, (torch.randn(shape, generator=generator) * 0.3 + name.endswith("norm.weight")).to(dtype))
        tokens(config.vocab_size, "t").write(writer.directory / "vocab.txt")
        if config.src_vocab_size:
            tokens(config.src_vocab_size, "s").write(writer.directory / "src_vocab.txt")
        for i, feature in enumerate(config.src_features):
            tokens(feature.vocab_size, "f").write(writer.directory / f"src_feat{i}_vocab.txt")
    return Checkpoint.open(path)


def own_batch(config: ModelConfig) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tgt = torch.randint(4, config.vocab_size, (3, 9), generator=generator)
    batch = {"tgt": tgt, "tgt_length": torch.tensor([9, 7, 4])}
    for row, length in enumerate((9, 7, 4)):
        tgt[row, length:] = 0
    if not config.is_decoder_only:
        src = torch.randint(4, config.encoder_vocab_size, (3, 8), generator=generator)
        src[1, 6:] = 0
        batch |= {"src": src, "src_length": torch.tensor([8, 6, 8])}
    return batch


@torch.no_grad()
def own_logits(path: Path, batch: Batch, features: int) -> torch.Tensor:
    model = load_model(path, dtype="fp32")
    if model.config.is_decoder_only:
        return model(batch["tgt"])
    mask_BS = torch.arange(batch["src"].shape[1]) < batch["src_length"][:, None]
    parts = {"features_BSF": (batch["src"] % 6)[..., None].expand(-1, -1, features)} if features else {}
    return model(batch["src"], batch["tgt"], src_mask_BS=mask_BS, **parts)


@pytest.mark.parametrize("name", OWN)
def test_our_models_keep_their_logits_through_its_format(tmp_path: Path, name: str) -> None:
    config = ModelConfig(**{**BASE, **OWN[name]})
    own = make_own(tmp_path / "own", config)
    command = f"-to opennmt -model_dir {own.path} -output {tmp_path}/there.pt"
    assert convert_command.main(command.split()) == 0
    assert convert_command.main(command.split()) == 4  # it exists already
    back = Checkpoint.open(convert(tmp_path / "there", tmp_path / "back"))
    batch = own_batch(config)
    expected = own_logits(own.path, batch, len(config.src_features))
    tolerance = 1e-5 if config.dtype == "fp32" else 2e-2
    assert distance(own_logits(back.path, batch, len(config.src_features)), expected, batch) <= tolerance
    specials = SpecialTokens(unk="<unk>", bos="<s>", eos="</s>", pad="<blank>")
    assert back.config.specials == specials and back.config.model.dtype == config.dtype
    assert next(iter(back.codec().vocab)) == "<blank>"


def test_what_it_cannot_compute_is_refused_by_name(tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"norm_position": "post"}, "norm_position is post"),
        ({"qk_norm": True, "head_dim": 8}, "head_dim is 8, qk_norm is true"),
        ({"activation": "gelu_tanh"}, "activation is gelu_tanh with ffn_gated: false"),
        ({"activation": "silu"}, "activation is silu with ffn_gated: false"),
        ({"position": "rotary", "rope": RopeConfig(scaling="llama3", factor=8.0)}, "rope.scaling is llama3"),
        ({"position": "learned", "max_position": 6000}, "max_position is 6000"),
        ({"sliding_window": 1}, "sliding_window is 1"),
    ]
    for i, (change, words) in enumerate(refused):
        own = make_own(tmp_path / f"own{i}", ModelConfig(**{**BASE, **change}))
        with pytest.raises(UnsupportedError, match=words):
            export_opennmt(own, tmp_path / "there")
    assert not list(tmp_path.glob("there*"))


def test_the_pickle_holds_nothing_but_options_and_plain_data(tmp_path: Path) -> None:
    file = export_opennmt(make_own(tmp_path / "own", ModelConfig(**BASE)), tmp_path / "there")
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(file, weights_only=True)
    assert sorted(content) == ["generator", "model", "opt", "vocab"]
    assert isinstance(content["opt"], Namespace) and content["opt"].self_attn_type == "scaled-dot"
    assert content["vocab"]["src"] == content["vocab"]["tgt"] and content["vocab"]["decoder_start_token"] == "<s>"


def test_an_export_replaces_files_only_when_told(tmp_path: Path) -> None:
    own = make_own(tmp_path / "own", ModelConfig(**BASE))
    export_opennmt(own, tmp_path / "there", format="safetensors", shard_size="5KB")
    assert (tmp_path / "there.01.safetensors").exists()
    with pytest.raises(CheckpointError, match="exists already"):
        export_opennmt(own, tmp_path / "there.pt")
    export_opennmt(own, tmp_path / "there.pt", overwrite=True)
    assert [file.name for file in tmp_path.glob("there*")] == ["there.pt"]


def test_the_options_of_its_own_tools_are_understood(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = f"--model_dir {DATA}/lm_rotary --output {tmp_path}/ours --format pytorch --nshards 2"
    assert convert_command.main(words.split()) == 0
    notes = capfd.readouterr().err
    assert "'nshards' has no effect" in notes and "'format' has no effect" in notes


@pytest.mark.slow
@with_opennmt_py
def test_opennmt_py_computes_the_same_from_our_exports(tmp_path: Path) -> None:
    expected: dict[str, tuple[torch.Tensor, Batch, float]] = {}
    for i, name in enumerate(NAMES):
        ours = convert(DATA / f"{name}.pt", tmp_path / name / "ours")
        export_opennmt(ours, tmp_path / f"{name}.pt", format="safetensors" if i % 2 else "pytorch")
        shutil.copyfile(DATA / f"{name}.npz", tmp_path / f"{name}.npz")
        batch = read_batch(DATA / f"{name}.npz")
        expected[name] = our_logits(ours, batch), batch, 1e-5
    for name, changes in OWN.items():
        config = ModelConfig(**{**BASE, **changes})
        if config.src_features:
            continue  # the script scores one feature
        own = make_own(tmp_path / f"own_{name}" / "own", config)
        export_opennmt(own, tmp_path / f"own_{name}.pt")
        batch = own_batch(config)
        np.savez(tmp_path / f"own_{name}.npz", **{key: tensor.numpy() for key, tensor in batch.items()})
        expected[f"own_{name}"] = own_logits(own.path, batch, 0), batch, 1e-5 if config.dtype == "fp32" else 2e-2
    run_oracle("score", str(tmp_path))
    far = {}
    for name, (logits, batch, tolerance) in expected.items():
        theirs = read_batch(tmp_path / f"{name}.scored.npz")["logits"]
        if distance(theirs, logits, batch) > tolerance:
            far[name] = distance(theirs, logits, batch)
    assert not far


@pytest.mark.slow
@with_opennmt_py
@pytest.mark.parametrize("name", FRAMES)
def test_opennmt_py_translates_with_the_tokens_around_our_texts(name: str, tmp_path: Path) -> None:
    config = ModelConfig(**{**BASE, **OWN["t5"], "scale_attention": True, "scale_logits": False})
    names = ["<s>", "<pad>", "</s>", "<unk>", "<extra_id_0>", "__de__", "__fr__"]
    own = write_checkpoint(tmp_path / "own", config, [*names, *(f"t{i}" for i in range(23))], **FRAMES[name])
    file = export_opennmt(own, tmp_path / "there.pt")
    vocab = torch.load(file, weights_only=False)["vocab"]["tgt"]
    sources = [" ".join(f"t{(i * j) % 23}" for j in range(1, 3 + i % 5)) for i in range(20)]
    (tmp_path / "there.beams.json").write_text(json.dumps({"sources": sources}), encoding="utf-8")
    run_oracle("search", str(tmp_path))
    theirs = json.loads((tmp_path / "there.searched.json").read_text(encoding="utf-8"))["avg"]
    engine = onmt_llm.open_engine(own, device="cpu")
    options = GenerationConfig(
        beam_size=5, n_best=5, length_penalty="avg", alpha=1.0, max_length=20, max_length_ratio=0
    )
    for line, answers, scores in zip(sources, theirs["answers"], theirs["scores"], strict=True):
        (found,) = engine.generate([engine.codec.encode(line)], options)
        ids = [engine.codec.vocab.ids(answer.tokens) for answer in found]
        assert ids == [[vocab.index(token) for token in answer.split()] for answer in answers]
        if len(engine.codec.start_tokens) == 1:  # OpenNMT-py adds the scores of tokens that it is given
            assert [answer.score for answer in found] == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
@with_opennmt_py
@pytest.mark.parametrize("name", ["lm_rotary", "s2s_sinusoidal_shared"])
def test_opennmt_py_trains_on_from_our_exports(tmp_path: Path, name: str) -> None:
    file = export_opennmt(convert(DATA / f"{name}.pt", tmp_path / "ours"), tmp_path / "there")
    assert "resumed" in run_oracle("resume", str(file))


@pytest.mark.slow
@with_opennmt_py
def test_fixtures_made_anew(tmp_path: Path) -> None:
    names = [name for name in NAMES if name != "reverse"]
    run_oracle("make", str(tmp_path), *names)
    for name in names:
        ours = convert(tmp_path / f"{name}.pt", tmp_path / "ours" / name)
        batch = read_batch(tmp_path / f"{name}.npz")
        assert distance(our_logits(ours, batch), batch["logits"], batch) <= 1e-5, name
