"""Names of OpenNMT-py and other toolkits: tables of renamed, ignored and removed options, and names of layers.

`compat.translate` applies the tables. `layer_name` is for the layers in `lora_layers` and `quant_layers`.
"""

from __future__ import annotations

from typing import Any

RENAMED = {
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "transformer_ff": "ffn_size",
    "add_ffnbias": "ffn_bias",
    "shared_layer_norm": "shared_norm",
    "share_decoder_embeddings": "tie_embeddings",
    "beam": "beam_size",
    "reset_optimizer": "reset_optim",
    "lora_r": "lora_rank",
    "gradient_accumulation_steps": "accum_count",
    "max_steps": "train_steps",
    "warmup": "warmup_steps",
    "lr": "learning_rate",
    "compute_dtype": "model_dtype",
    "lambda_prior_lambda": "lm_prior_lambda",
    "lambda_prior_tau": "lm_prior_tau",
    "from": "source",
    "output_dir": "output_directory",
    "roles_to_train": "train_roles",
    "train_on_eot": "train_on_eos",
    "tensor_parallel_size": "tensor_parallel",
    "fix_word_vecs_enc": "freeze_word_vecs_enc",
    "fix_word_vecs_dec": "freeze_word_vecs_dec",
    "max_sent_length": "max_length",
    "ip": "host",
}
"""Options with the same meaning under another name."""

OF_OTHER_TOOLKITS = {
    "beam",
    "lora_r",
    "gradient_accumulation_steps",
    "max_steps",
    "warmup",
    "lr",
    "compute_dtype",
    "from",
    "output_dir",
    "roles_to_train",
    "train_on_eot",
    "tensor_parallel_size",
    "fp32",
    "int8",
}
"""Names in `RENAMED` and `RETIRED` that do not show that a file was written for OpenNMT-py."""

CORPUS_RENAMED = {
    "field_messages": "messages_key",
    "message_field_role": "role_key",
    "message_field_content": "content_key",
    "field": "text_key",
    "text_column": "text_key",
    "field_instruction": "prompt_key",
    "field_input": "input_key",
    "field_output": "answer_key",
    "field_system": "system_key",
    "roles_to_train": "train_roles",
    "train_on_eot": "train_on_eos",
}
"""Axolotl's names of corpus options; its `message_property_mappings` contains `role` and `content`."""

IGNORED = {
    "rotary_interleave": "checkpoints have one rotary layout; converters permute the weights",
    "apex_opt_level": "model_dtype selects mixed precision",
    "gpu_backend": "the backend follows the device",
    "gpu_verbose_level": "every rank logs warnings",
    "master_ip": "torchrun sets the address",
    "master_port": "torchrun sets the port",
    "save_format": "checkpoints are directories of safetensors",
    "nshards": "weights are written tensor by tensor, into files of at most `shard_size`",
    "decoder_bos": "the start token is stored in the checkpoint",
    "attn_debug": "attention is not printed; report_align writes word alignments",
    "align_debug": "attention is not printed; report_align writes word alignments",
    "bucket_size_init": "all buckets have bucket_size examples",
    "bucket_size_increment": "all buckets have bucket_size examples",
    "dump_transforms": "the tokeniser is stored in the checkpoint's config.yaml",
    "exp": "Crayon no longer exists; tensorboard: true logs to files",
    "exp_host": "Crayon no longer exists; tensorboard: true logs to files",
    "group_size": "AWQ weights are not supported; quant_type lists the supported formats",
    "w_bit": "AWQ weights are not supported; quant_type lists the supported formats",
    "log_file_level": "log_file receives the same messages as the console",
    "profile": "use any profiler: py-spy, or python -m cProfile",
    "report_time": "the speed is always logged",
    "save_config": "-print_config prints the resolved configuration as YAML",
    "src_seq_length_trunc": "OpenNMT-py 3 does not use it either; filtertoolong drops long examples",
    "tgt_seq_length_trunc": "OpenNMT-py 3 does not use it either; filtertoolong drops long examples",
    "timeout": "torchrun and the backend set time limits",
    "vocab_sample_queue_size": "worker processes need no queue size",
    "fast": "beam search always decodes batches",
    "max_generator_batches": "the loss is always computed in chunks of positions",
    "max_shard_size": "corpora are read as streams",
    "pool_factor": "the examples of a bucket, bucket_size, are sorted by length together",
    "queue_size": "prefetch_factor is the number of batches that are prepared in advance",
}
"""Options without effect here: accepted, with a note that says why."""

_TEXT_ONLY = "models of images and sound are retired; all data are text"
_CORPORA = "name the files in `data`, as `path_src` and `path_tgt` of each corpus; that of validation is called `valid`"
_NOISE = (
    "list `bart` in the `transforms` of the corpora that get noise, with `mask_ratio`, `mask_length` and "
    "`permute_sent_ratio`"
)
_FEATURES = "write the features behind the words of the source, `word￨feature`, and set `n_src_feats`"

RETIRED = {
    "copy_attn": "copy attention is retired; use `replace_unk` or placeholders",
    "coverage_attn": "coverage attention belonged to the RNN decoder, which is retired",
    "rnn_type": "RNN models are retired; use a Transformer",
    "global_attention": "RNN attention is retired; use a Transformer",
    "input_feed": "input feeding belonged to the RNN decoder, which is retired",
    "bridge": "the RNN bridge is retired",
    "cnn_kernel_width": "CNN models are retired; use a Transformer",
    "n_edge_types": "GGNN models are retired; use a Transformer",
    "aan_useffn": "average attention is retired; use scaled-dot attention, which is as fast with a key/value cache",
    "n_node": "GGNN models are retired; use a Transformer",
    "n_steps": "GGNN models are retired; use a Transformer",
    "src_ggnn_size": "GGNN models are retired; use a Transformer",
    "state_dim": "GGNN models are retired; use a Transformer",
    "bidir_edges": "GGNN models are retired; use a Transformer",
    "bridge_extra_node": "GGNN models are retired; use a Transformer",
    "context_gate": "context gates belonged to the RNN decoder, which is retired",
    "copy_attn_type": "copy attention is retired; use `replace_unk` or placeholders",
    "copy_attn_force": "copy attention is retired; use `replace_unk` or placeholders",
    "copy_loss_by_seqlength": "copy attention is retired; use `replace_unk` or placeholders",
    "reuse_copy_attn": "copy attention is retired; use `replace_unk` or placeholders",
    "lambda_coverage": "coverage attention belonged to the RNN decoder, which is retired",
    "global_attention_function": "RNN attention is retired; use a Transformer",
    "truncated_decoder": "truncated back-propagation belonged to the RNN decoder, which is retired",
    "single_pass": "runs are measured in updates; use `train_steps`",
    "pre_word_vecs_enc": "it named a pickled tensor; use `src_embeddings` with the original text file",
    "pre_word_vecs_dec": "it named a pickled tensor; use `tgt_embeddings` with the original text file",
    "gold_align": "`report_align` with `tgt` and `tgt_file_prefix` aligns given targets",
    "dump_beam": "the beam cannot be written; use `n_best` with `with_score`",
    "fp32": "it is deprecated in OpenNMT-py too; use `precision: fp32`",
    "int8": "it is deprecated in OpenNMT-py too; use `precision: int8`",
    "audio_enc_pooling": _TEXT_ONLY,
    "brnn": "RNN models are retired; use a Transformer",
    "data_ids": _CORPORA,
    "data_to_noise": _NOISE,
    "data_weights": "set the `weight` of each corpus in `data`",
    "dynamic_dict": "copy attention is retired; use `replace_unk` or placeholders",
    "filter_valid": "list `filtertoolong` in the `transforms` of the corpus `valid`",
    "gpuid": "a GPU is used whenever there is one; CUDA_VISIBLE_DEVICES=1,2 selects some, and torchrun uses several",
    "image_channel_size": _TEXT_ONLY,
    "lower": "write all texts in lower case in advance, those to be translated too",
    "model_config": "give that file to `onmt_llm_serve` as `-config`",
    "report_bleu": "score the output with `onmt_llm_eval score -metrics BLEU`",
    "report_rouge": "score the output with `onmt_llm_eval score -metrics ROUGEL`",
    "sample_rate": _TEXT_ONLY,
    "src_dir": _TEXT_ONLY,
    "src_feats": _FEATURES,
    "src_feats_vocab": _FEATURES,
    "src_noise": _NOISE,
    "src_noise_prob": _NOISE,
    "train_align": "name the file in `data`, as `path_align` of its corpus",
    "train_ids": _CORPORA,
    "train_src": _CORPORA,
    "train_tgt": _CORPORA,
    "valid_align": "name the file in `data`, as `path_align` of the corpus `valid`",
    "valid_src": _CORPORA,
    "valid_tgt": _CORPORA,
    "window": _TEXT_ONLY,
    "window_size": _TEXT_ONLY,
    "window_stride": _TEXT_ONLY,
}
"""Options of features that no longer exist: an error, unless the value switches the feature off."""

RETIRED_DEFAULTS: dict[str, Any] = {
    "data_to_noise": [],
    "gpuid": [],
    "src_noise": [],
    "src_noise_prob": [],
    "rnn_type": "LSTM",
    "copy_attn_type": "general",
    "global_attention": "general",
    "global_attention_function": "softmax",
    "input_feed": 1,
    "cnn_kernel_width": 3,
    "n_edge_types": 2,
    "n_node": 2,
    "n_steps": 2,
    "state_dim": 512,
    "bidir_edges": True,
    "bridge_extra_node": True,
    "audio_enc_pooling": "1",
    "image_channel_size": 3,
    "sample_rate": 16000,
    "window": "hamming",
    "window_size": 0.02,
    "window_stride": 0.01,
}
"""Defaults of options in `RETIRED`, which OpenNMT-py writes into every saved configuration; not an error either."""

RETIRED_IN_CORPUS = {"src_feats": _FEATURES}
"""Keys of a corpus of OpenNMT-py 2 that no longer exist, and what to do."""

OF_EARLIER_VERSIONS = {
    "audio_enc_pooling",
    "brnn",
    "data_ids",
    "data_to_noise",
    "data_weights",
    "dec_rnn_size",
    "dynamic_dict",
    "enc_rnn_size",
    "fast",
    "filter_valid",
    "fix_word_vecs_dec",
    "fix_word_vecs_enc",
    "gpuid",
    "image_channel_size",
    "lower",
    "max_generator_batches",
    "max_sent_length",
    "max_shard_size",
    "pool_factor",
    "queue_size",
    "report_bleu",
    "report_rouge",
    "rnn_size",
    "sample_rate",
    "src_dir",
    "src_feats",
    "src_feats_vocab",
    "src_noise",
    "src_noise_prob",
    "train_align",
    "train_ids",
    "train_src",
    "train_tgt",
    "valid_align",
    "valid_src",
    "valid_tgt",
    "window",
    "window_size",
    "window_stride",
}
"""Options of OpenNMT-py 1 and 2 that OpenNMT-py 3 no longer has: for the documentation."""

OPENNMT_LAYERS = {
    "linear_query": "q_proj",
    "linear_keys": "k_proj",
    "linear_values": "v_proj",
    "final_linear": "o_proj",
    "w_2": "down_proj",
    "w_3": "up_proj",
    "self_attn": "self_attn",
    "context_attn": "cross_attn",
    "feed_forward": "mlp",
}
"""OpenNMT-py's layer names. `w_1` is missing: the gate of a gated feed-forward layer, else the up-projection."""


def layer_name(name: str, *, gated: bool) -> str:
    """Translate a layer name of OpenNMT-py into ours; any other name is returned unchanged.

    Args:
        name: e.g. "linear_query", "context_attn.linear_query", "w_1" or already "q_proj".
        gated: Whether the model's feed-forward layers are gated.
    """
    parts = []
    for part in name.split("."):
        if part == "w_1":
            parts.append("gate_proj" if gated else "up_proj")
        else:
            parts.append(OPENNMT_LAYERS.get(part, part))
    return ".".join(parts)
