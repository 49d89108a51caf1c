"""The networks of architectures.py: how each is built, small, with random weights."""

import torch
from torch import nn

# timm's, with 10 classes: name, image size, further arguments.
TIMM = [
    ("resnet18", 64, {}),
    ("resnet50", 64, {}),
    ("resnext50_32x4d", 64, {}),
    ("seresnet50", 64, {}),
    ("res2net50_14w_8s", 64, {}),
    ("resnest14d", 64, {}),
    ("skresnet18", 64, {}),
    ("densenet121", 64, {}),
    ("dla34", 64, {}),
    ("cspresnet50", 64, {}),
    ("darknet53", 64, {}),
    ("vovnet39a", 64, {}),
    ("inception_v3", 96, {}),
    ("xception41", 64, {}),
    ("hrnet_w18_small", 64, {}),
    ("repvgg_a0", 64, {}),
    ("mobilenetv2_050", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("mobilenetv4_conv_small_050", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("efficientnet_lite0", 64, {}),
    ("tf_efficientnetv2_b0", 64, {}),
    ("mixnet_s", 64, {}),
    ("mnasnet_small", 64, {}),
    ("ghostnet_050", 64, {}),
    ("ghostnetv2_100", 64, {}),
    ("fbnetc_100", 64, {}),
    ("lcnet_050", 64, {}),
    ("regnetx_002", 64, {}),
    ("regnety_002", 64, {}),
    ("regnetz_005", 64, {}),
    ("nf_regnet_b0", 64, {}),
    ("eca_nfnet_l0", 64, {}),
    ("resnetv2_50", 64, {}),
    ("hgnetv2_b0", 64, {}),
    ("starnet_s1", 64, {}),
    ("convnext_atto", 64, {}),
    ("convnextv2_atto", 64, {}),
    ("poolformer_s12", 64, {}),
    ("edgenext_xx_small", 64, {}),
    ("fastvit_t8", 64, {}),
    ("repvit_m0_9", 64, {}),
    ("efficientformer_l1", 224, {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 2)}),
    ("efficientvit_b0", 64, {}),
    ("mobilevit_xxs", 64, {}),
    ("mobilevitv2_050", 64, {}),
    ("mobileone_s0", 64, {}),
    ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("vit_relpos_small_patch16_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 4}),
    ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("deit3_small_patch16_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 4}),
    ("beit_base_patch16_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 4}),
    ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 2}),
    ("cait_xxs24_224", 64, {"img_size": 64, "depth": 3}),
    ("xcit_nano_12_p16_224", 64, {"img_size": 64, "depth": 3}),
    ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}),
    ("swinv2_tiny_window8_256", 64, {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}),
    ("levit_128s", 224, {}),
    ("pit_ti_224", 224, {}),
    ("twins_pcpvt_small", 64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("twins_svt_small", 64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("pvt_v2_b0", 64, {}),
    ("mvitv2_tiny", 64, {"img_size": 64}),
    ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 96), "num_heads": (1, 2, 4, 4)}),
    ("focalnet_tiny_srf", 64, {}),
    ("volo_d1_224", 64, {"img_size": 64}),
    ("visformer_tiny", 64, {"img_size": 64}),
    ("crossvit_tiny_240", 240, {}),
    ("tnt_s_legacy_patch16_224", 64, {"img_size": 64, "depth": 2}),
    ("coat_lite_tiny", 64, {"img_size": 64}),
    ("coatnet_pico_rw_224", 64, {"img_size": 64}),
    ("maxvit_pico_rw_256", 64, {"img_size": 64}),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("gmlp_ti16_224", 64, {"img_size": 64}),
    ("resmlp_12_224", 64, {"img_size": 64}),
    ("sequencer2d_s", 64, {"img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (24, 48, 48, 48), "hidden_sizes": (12, 24, 24, 24)}),
    ("tiny_vit_5m_224", 64, {"depths": (1, 1, 1, 1)}),
    ("hiera_tiny_224", 64, {"img_size": 64, "stages": (1, 1, 1, 1), "embed_dim": 24}),
    ("rdnet_tiny", 64, {}),
    ("caformer_s18", 64, {}),
]

# torchvision's: name, shape of the input, further arguments.
TORCHVISION = [
    ("alexnet", (2, 3, 224, 224), {}),
    ("squeezenet1_1", (4, 3, 64, 64), {}),
    ("shufflenet_v2_x0_5", (4, 3, 64, 64), {}),
    ("googlenet", (4, 3, 64, 64), {"aux_logits": False, "init_weights": False}),
    ("segmentation.fcn_resnet50", (2, 3, 48, 48), {"weights_backbone": None, "aux_loss": False}),
    ("segmentation.deeplabv3_mobilenet_v3_large", (2, 3, 64, 64), {"weights_backbone": None, "aux_loss": False}),
    ("segmentation.lraspp_mobilenet_v3_large", (2, 3, 64, 64), {"weights_backbone": None}),
    ("video.r3d_18", (2, 3, 4, 32, 32), {}),
    ("video.mc3_18", (2, 3, 4, 32, 32), {}),
    ("video.r2plus1d_18", (2, 3, 4, 32, 32), {}),
    ("video.s3d", (2, 3, 16, 64, 64), {}),
]

TEXT = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    attention_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}

# Transformers': configuration, model, its arguments, what it takes.
TRANSFORMERS = {
    "bert": ("BertConfig", "BertForSequenceClassification", TEXT, "text"),
    "bert_mlm": ("BertConfig", "BertForMaskedLM", TEXT, "text"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}, "text"),
    "camembert": ("CamembertConfig", "CamembertForMaskedLM", {**TEXT, "pad_token_id": 1}, "text"),
    "distilbert": ("DistilBertConfig", "DistilBertForSequenceClassification",
                   dict(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
                        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0), "text"),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, "text"),
    "electra": ("ElectraConfig", "ElectraForSequenceClassification", {**TEXT, "embedding_size": 16}, "text"),
    "mobilebert": ("MobileBertConfig", "MobileBertForSequenceClassification",
                   {**TEXT, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}, "text"),
    "deberta": ("DebertaConfig", "DebertaForSequenceClassification", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "text"),
    "deberta_v2": ("DebertaV2Config", "DebertaV2ForSequenceClassification",
                   {**TEXT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}, "text"),
    "mpnet": ("MPNetConfig", "MPNetForMaskedLM", {**TEXT, "pad_token_id": 1}, "text"),
    "squeezebert": ("SqueezeBertConfig", "SqueezeBertForSequenceClassification", {**TEXT, "embedding_size": 32}, "text"),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}, "text"),
    "convbert": ("ConvBertConfig", "ConvBertForSequenceClassification", {**TEXT, "embedding_size": 32}, "text"),
    "roformer": ("RoFormerConfig", "RoFormerForSequenceClassification", {**TEXT, "embedding_size": 32}, "text"),
    "fnet": ("FNetConfig", "FNetForSequenceClassification", {**TEXT, "tpu_short_seq_length": 12}, "ids"),
    "modernbert": ("ModernBertConfig", "ModernBertForSequenceClassification", {**TEXT, "local_attention": 8}, "text"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "causal"),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM",
                dict(vocab_size=99, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
                     max_position_embeddings=64, window_size=8, resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0), "causal"),
    "gptj": ("GPTJConfig", "GPTJForCausalLM",
             dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "causal"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT, "causal"),
    "opt": ("OPTConfig", "OPTForCausalLM",
            dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, max_position_embeddings=64,
                 word_embed_proj_dim=32, dropout=0.0, pad_token_id=1), "causal"),
    "bloom": ("BloomConfig", "BloomForCausalLM", dict(vocab_size=99, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0), "causal"),
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED, "causal"),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 8}, "causal"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED, "causal"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GROUPED, "causal"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", GROUPED, "causal"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 8}, "causal"),
    "phi": ("PhiConfig", "PhiForCausalLM", TEXT, "causal"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**GROUPED, "sliding_window": 8}, "causal"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", GROUPED, "causal"),
    "granite": ("GraniteConfig", "GraniteForCausalLM", GROUPED, "causal"),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", GROUPED, "causal"),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", GROUPED, "causal"),
    "cohere": ("CohereConfig", "CohereForCausalLM", GROUPED, "causal"),
    "falcon": ("FalconConfig", "FalconForCausalLM",
               dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.0, attention_dropout=0.0), "causal"),
    "mpt": ("MptConfig", "MptForCausalLM", dict(vocab_size=99, d_model=32, n_layers=2, n_heads=4, max_seq_len=64), "causal"),
    "mamba": ("MambaConfig", "MambaForCausalLM", dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4), "ids"),
    "t5": ("T5Config", "T5ForConditionalGeneration",
           dict(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0), "seq2seq"),
    "bart": ("BartConfig", "BartForConditionalGeneration",
             dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                  encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0), "seq2seq"),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration",
                dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                     encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0), "seq2seq"),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration",
                dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                     encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=24, max_target_positions=24, dropout=0.0,
                     attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1), "speech2text"),
    "vit": ("ViTConfig", "ViTForImageClassification", {**TEXT, "image_size": 32, "patch_size": 8}, "image"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", {**TEXT, "image_size": 32, "patch_size": 8}, "image"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", {**TEXT, "image_size": 32, "patch_size": 8}, "image"),
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation",
                  dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32,
                       hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0, classifier_dropout_prob=0.0), "image64"),
    "swin": ("SwinConfig", "SwinForImageClassification",
             dict(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0), "image"),
    "mobilevit": ("MobileViTConfig", "MobileViTForImageClassification",
                  dict(image_size=64, hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32], num_attention_heads=4,
                       hidden_dropout_prob=0.0, classifier_dropout_prob=0.0), "image64"),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification",
                 {**TEXT, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
                  "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "layerdrop": 0.0,
                  "feat_proj_dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0}, "audio"),
    "clip_vision": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", {**TEXT, "image_size": 32, "patch_size": 8, "projection_dim": 16}, "image_embeds"),
    "clip_text": ("CLIPTextConfig", "CLIPTextModelWithProjection", {**TEXT, "projection_dim": 16, "eos_token_id": 98}, "text_embeds"),
}

DIFFUSERS = ["unet2d", "unet2d_condition", "autoencoder_kl", "dit"]


def names():
    """Every network, as `library/name`."""
    return [
        *(f"timm/{n}" for n, _, _ in TIMM),
        *(f"torchvision/{n}" for n, _, _ in TORCHVISION),
        *(f"transformers/{n}" for n in TRANSFORMERS),
        *(f"diffusers/{n}" for n in DIFFUSERS),
    ]


class Wrapped(nn.Module):
    """A module called by keywords, and what of its result is wanted."""

    def __init__(self, inner, keys, pick, fixed=None):
        super().__init__()
        self.inner, self.keys, self.pick, self.fixed = inner, keys, pick, fixed or {}

    def forward(self, *inputs):
        out = self.inner(**dict(zip(self.keys, inputs)), **self.fixed)
        return out[self.pick] if isinstance(self.pick, str) and isinstance(out, dict) else getattr(out, self.pick)


def build(name, seed):
    """(module, inputs) of `library/name`, inputs drawn from the seed."""
    library, name = name.split("/", 1)
    generator = torch.Generator().manual_seed(2 + seed)
    noise = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tokens = lambda *shape: torch.randint(3, 99, shape, generator=generator)  # noqa: E731
    if library == "timm":
        import timm

        (size, options) = next((s, o) for n, s, o in TIMM if n == name)
        from timm.layers import set_fused_attn

        set_fused_attn(True)
        return timm.create_model(name, pretrained=False, num_classes=10, **options), [noise(4, 3, size, size)]
    if library == "torchvision":
        import torchvision.models as models

        shape, options = next((s, o) for n, s, o in TORCHVISION if n == name)
        make = models
        for part in name.split("."):
            make = getattr(make, part)
        net = make(num_classes=10, **options) if "backbone" in str(options) else make(weights=None, num_classes=10, **options)
        return (Wrapped(net, ["input" if "lraspp" in name else "x"], "out") if name.startswith("segmentation") else net), [noise(*shape)]
    if library == "transformers":
        return transformers_net(name, noise, tokens)
    return diffusers_net(name, noise, tokens)


def transformers_net(name, noise, tokens):
    import transformers

    config, model, options, kind = TRANSFORMERS[name]
    net = getattr(transformers, model)(getattr(transformers, config)(**options))
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    ids = tokens(3, 12)
    if kind in ("text", "causal"):
        fixed = {"use_cache": False} if kind == "causal" else {}
        return Wrapped(net, ["input_ids", "attention_mask"], "logits", fixed), [ids, mask]
    if kind == "ids":
        fixed = {"use_cache": False} if name == "mamba" else {}
        return Wrapped(net, ["input_ids"], "logits", fixed), [ids]
    if kind == "seq2seq":
        keys = ["input_ids", "attention_mask", "decoder_input_ids"]
        return Wrapped(net, keys, "logits", {"use_cache": False}), [ids, mask, tokens(3, 7)]
    if kind == "speech2text":
        keys = ["input_features", "decoder_input_ids"]
        return Wrapped(net, keys, "logits", {"use_cache": False}), [noise(2, 16, 48), tokens(2, 7)]
    if kind == "audio":
        return Wrapped(net, ["input_values"], "logits"), [noise(2, 400)]
    if kind == "image_embeds":
        return Wrapped(net, ["pixel_values"], "image_embeds"), [noise(2, 3, 32, 32)]
    if kind == "text_embeds":
        return Wrapped(net, ["input_ids", "attention_mask"], "text_embeds"), [ids, mask]
    size = 64 if kind == "image64" else 32
    return Wrapped(net, ["pixel_values"], "logits"), [noise(2, 3, size, size)]


def diffusers_net(name, noise, tokens):
    import diffusers

    time = torch.tensor([3, 7])
    if name == "unet2d":
        net = diffusers.UNet2DModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        return Wrapped(net, ["sample", "timestep"], "sample"), [noise(2, 3, 16, 16), time]
    if name == "unet2d_condition":
        net = diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
            attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        keys = ["sample", "timestep", "encoder_hidden_states"]
        return Wrapped(net, keys, "sample"), [noise(2, 4, 16, 16), time, noise(2, 5, 16)]
    if name == "autoencoder_kl":
        net = diffusers.AutoencoderKL(
            block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )
        return Wrapped(net, ["sample"], "sample"), [noise(2, 3, 16, 16)]
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=20, norm_num_groups=8,
    )
    keys = ["hidden_states", "timestep", "class_labels"]
    return Wrapped(net, keys, "sample"), [noise(2, 4, 8, 8), time, tokens(2) % 20]
