"""Real models of `transformers` from small configs: the same before and after `accelerate`."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import gennorm.torch as gt  # noqa: E402

nn = torch.nn
GENERATOR = torch.Generator().manual_seed(1)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
CAUSAL = {**SMALL, **TEXT, "num_key_value_heads": 2, "head_dim": 8}


def words(length=7):
    return {"input_ids": torch.randint(2, 64, (2, length), generator=torch.Generator().manual_seed(1))}


def picture(size):
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))}


def made(config, model, given, **settings):
    return lambda: (getattr(transformers, model)(getattr(transformers, config)(**settings)), given)


def detr():
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=4, num_labels=3,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), picture(32)


T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": None,
}  # fmt: skip
WHISPER = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 16,
    "max_target_positions": 16, "num_mel_bins": 8, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
SOUND = {"input_features": torch.randn(2, 8, 32, generator=GENERATOR), "decoder_input_ids": words()["input_ids"]}
WAVES = {"input_values": torch.randn(2, 256, generator=GENERATOR)}
WAV2VEC2 = {
    **SMALL, "vocab_size": 32, "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}  # fmt: skip
# What it is made by, and of which class how many layers are replaced.
MODELS = {
    "qwen3": (made("Qwen3Config", "Qwen3ForCausalLM", words(), **CAUSAL), {"Qwen3RMSNorm": 9}),
    "gemma3": (
        made("Gemma3TextConfig", "Gemma3ForCausalLM", words(), **CAUSAL, query_pre_attn_scalar=8, sliding_window=4),
        {"Gemma3RMSNorm": 13},
    ),
    "llama": (made("LlamaConfig", "LlamaForCausalLM", words(), **CAUSAL), {"LlamaRMSNorm": 5}),
    "t5": (
        made("T5Config", "T5ForConditionalGeneration", {**words(), "decoder_input_ids": words(5)["input_ids"]}, **T5),
        {"T5LayerNorm": 12},
    ),
    "whisper": (made("WhisperConfig", "WhisperForConditionalGeneration", SOUND, **WHISPER), {"LayerNorm": 7}),
    "gpt2": (
        made("GPT2Config", "GPT2LMHeadModel", words(), vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4,
             bos_token_id=1, eos_token_id=None),
        {"LayerNorm": 5},
    ),
    "mamba2": (
        made("Mamba2Config", "Mamba2ForCausalLM", words(), vocab_size=64, hidden_size=32, num_hidden_layers=1,
             num_heads=4, head_dim=16, state_size=8, expand=2, n_groups=1, chunk_size=8, pad_token_id=0, bos_token_id=1,
             eos_token_id=None),
        {"Mamba2RMSNorm": 2, "MambaRMSNormGated": 1},
    ),
    "bert": (made("BertConfig", "BertForMaskedLM", words(), **SMALL, **TEXT), {"LayerNorm": 6}),
    "vit": (
        made("ViTConfig", "ViTForImageClassification", picture(16), **SMALL, image_size=16, patch_size=4),
        {"LayerNorm": 5},
    ),
    "swin": (
        made("SwinConfig", "SwinForImageClassification", picture(32), image_size=32, patch_size=4, embed_dim=16,
             depths=[1, 1], num_heads=[2, 2], window_size=4),
        {"LayerNorm": 7},
    ),
    "resnet": (
        made("ResNetConfig", "ResNetForImageClassification", picture(32), embedding_size=8, hidden_sizes=[16, 32],
             depths=[1, 1], layer_type="basic"),
        {"BatchNorm2d": 7},
    ),
    "efficientnet": (
        made("EfficientNetConfig", "EfficientNetForImageClassification", picture(32), image_size=32,
             kernel_sizes=[3, 3], in_channels=[32, 8], out_channels=[8, 8], depthwise_padding=[], strides=[1, 2],
             num_block_repeats=[1, 1], expand_ratios=[1, 2], width_coefficient=1.0, depth_coefficient=1.0,
             hidden_dim=1280, drop_connect_rate=0.0),
        {"BatchNorm2d": 7},
    ),
    "detr": (detr, {"LayerNorm": 6}),
    "wav2vec2": (
        made("Wav2Vec2Config", "Wav2Vec2ForCTC", WAVES, **WAV2VEC2),
        {"LayerNorm": 6, "GroupNorm": 1},
    ),
}  # fmt: skip
GENERATIVE = {"qwen3", "gemma3", "llama", "gpt2", "t5", "whisper", "mamba2"}


def pair(name):
    """A model with parameters that differ from place to place, the same one accelerated, its inputs, and the report."""
    torch.manual_seed(0)
    model, given = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(model)
    return model, other, given, gt.accelerate(other)


def cast(given, dtype):
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}


def apart(one, other):
    """The largest difference, relative to the largest value."""
    return ((one.double() - other.double()).abs().max() / other.abs().max().double().clamp_min(1e-30)).item()


def learned(model, given):
    torch.manual_seed(2)  # dropout leaves out the same elements in both models
    logits = model(**given).logits
    logits.float().square().mean().backward()
    return logits.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_before_and_after(name):
    """Layers, logits and gradients in training; logits in evaluation, in bfloat16; words."""
    theirs, ours, given, report = pair(name)
    counted = {}
    for one in report.replaced:
        counted[one.kind] = counted.get(one.kind, 0) + 1
    assert counted == MODELS[name][1], str(report)
    theirs.train(), ours.train()
    (expected, gradients), (found, own) = (learned(model, given) for model in (theirs, ours))
    assert apart(found, expected) < 1e-4
    assert own.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        scale = max(gradient.abs().max(), 1e-2 * largest)  # some are zero but for rounding
        assert (own[key] - gradient).abs().max() / scale < 2e-3, key
    for (key, one), other in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=key)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        assert apart(ours(**given).logits, theirs(**given).logits) < 1e-4
        if name in GENERATIVE:
            inputs = {key: value for key, value in given.items() if key != "decoder_input_ids"}
            sentences = [
                model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=True) for model in (theirs, ours)
            ]
            assert torch.equal(*sentences)
        gt.restore(ours)
        exact = theirs(**given).logits
        theirs.bfloat16(), ours.bfloat16()
        report = gt.accelerate(ours)
        assert len(report.replaced) == sum(MODELS[name][1].values()), str(report)
        half = cast(given, torch.bfloat16)
        # Not farther from float32 than torch's own: a norm that is rounded once is nearer.
        assert apart(ours(**half).logits, exact) < 1.5 * apart(theirs(**half).logits, exact) + 0.01
