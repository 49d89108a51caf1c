"""Compares what Precast would train of a network with what PyTorch trains.

    python3 tests/peers/check_trained.py path/to/precast [-e ts|dynamo] [-k WORD] [--list]

Small configurations of transformers and timm go through both exporters as docs/EXPORTING.md says,
`precast check --json` names the tensors that would be trained, and those are compared with the
parameters that `named_parameters()` says need a gradient and that a backward pass of the outputs'
sum reaches. One line a file: `ok`, the differences, or why there is nothing to compare. Exit code 1
where a difference is left.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings

import torch
from torch import nn
from torch.onnx import TrainingMode

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": 64, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager",
}


class Text(nn.Module):
    """Ids and a mask in; the first real tensor of the result out."""

    def __init__(self, inner, **fixed):
        super().__init__()
        self.inner, self.fixed = inner, fixed

    def forward(self, ids, mask):
        return self.inner(input_ids=ids, attention_mask=mask, **self.fixed)[0]


class Both(nn.Module):
    """Encoder and decoder take the same ids."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids, mask):
        return self.inner(
            input_ids=ids, attention_mask=mask, decoder_input_ids=ids, use_cache=False
        )[0]


class Image(nn.Module):
    def __init__(self, inner, **fixed):
        super().__init__()
        self.inner, self.fixed = inner, fixed

    def forward(self, image):
        y = self.inner(image, **self.fixed)
        return y if isinstance(y, torch.Tensor) else y[0]


class Clip(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids, mask, image):
        return self.inner(input_ids=ids, attention_mask=mask, pixel_values=image)[0]


class Sound(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, sound, ids):
        return self.inner(input_features=sound, decoder_input_ids=ids, use_cache=False)[0]


def text(name, config, model, wrap=Text, fixed=None, **more):
    def build():
        import transformers as t

        cfg = getattr(t, config)(**{**SMALL, **more})
        ids = torch.randint(3, 60, (2, 8))
        return wrap(getattr(t, model)(cfg), **(fixed or {})), (ids, torch.ones_like(ids))

    return name, build


def image(name, config, model, **more):
    def build():
        import transformers as t

        cfg = {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 5, **more}
        return Image(getattr(t, model)(getattr(t, config)(**cfg))), (torch.randn(2, 3, 32, 32),)

    return name, build


def timm(name, size=64, **more):
    def build():
        import timm as lib

        net = lib.create_model(name, num_classes=5, **more)
        return Image(net), (torch.randn(2, 3, size, size),)

    return name, build


def clip():
    import transformers as t

    part = {k: v for k, v in SMALL.items() if k not in ("attn_implementation", "vocab_size")}
    cfg = t.CLIPConfig(
        text_config={**part, "vocab_size": 64, "eos_token_id": 2}, projection_dim=16,
        vision_config={**part, "image_size": 32, "patch_size": 8}, attn_implementation="eager",
    )
    ids = torch.randint(3, 60, (2, 8))
    return Clip(t.CLIPModel(cfg)), (ids, torch.ones_like(ids), torch.randn(2, 3, 32, 32))


def whisper():
    import transformers as t

    cfg = t.WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
        max_source_positions=16, max_target_positions=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, dropout=0.0, attn_implementation="eager",
    )
    net = t.WhisperForConditionalGeneration(cfg)
    return Sound(net), (torch.randn(2, 8, 32), torch.randint(3, 60, (2, 6)))


SEQ = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
       "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0,
       "attention_dropout": 0.0, "activation_dropout": 0.0}
KV = {"num_key_value_heads": 1}
NETWORKS = [
    text("bert", "BertConfig", "BertForSequenceClassification"),
    text("albert", "AlbertConfig", "AlbertForMaskedLM", embedding_size=16, classifier_dropout_prob=0.0),
    text("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", dim=32, n_layers=1, n_heads=2,
         hidden_dim=48, dropout=0.0, attention_dropout=0.0),
    text("distilbert_sinusoids", "DistilBertConfig", "DistilBertForMaskedLM", dim=32, n_layers=1,
         n_heads=2, hidden_dim=48, dropout=0.0, attention_dropout=0.0, sinusoidal_pos_embds=True),
    text("roberta", "RobertaConfig", "RobertaForMaskedLM"),
    text("electra", "ElectraConfig", "ElectraForPreTraining", embedding_size=16),
    text("deberta", "DebertaV2Config", "DebertaV2ForMaskedLM"),
    text("gpt2", "GPT2Config", "GPT2LMHeadModel", fixed={"use_cache": False}, n_embd=32, n_layer=1,
         n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    text("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", fixed={"use_cache": False}),
    text("gptj", "GPTJConfig", "GPTJForCausalLM", fixed={"use_cache": False}, n_embd=32, n_layer=1,
         n_head=2, n_positions=32, rotary_dim=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    text("llama", "LlamaConfig", "LlamaForCausalLM", fixed={"use_cache": False}, **KV),
    text("mistral", "MistralConfig", "MistralForCausalLM", fixed={"use_cache": False}, **KV),
    text("qwen2", "Qwen2Config", "Qwen2ForCausalLM", fixed={"use_cache": False}, **KV),
    text("gemma", "GemmaConfig", "GemmaForCausalLM", fixed={"use_cache": False}, head_dim=16, **KV),
    text("phi", "PhiConfig", "PhiForCausalLM", fixed={"use_cache": False}),
    text("opt", "OPTConfig", "OPTForCausalLM", fixed={"use_cache": False}, ffn_dim=48,
         word_embed_proj_dim=32, dropout=0.0, attention_dropout=0.0),
    text("bloom", "BloomConfig", "BloomForCausalLM", fixed={"use_cache": False}, n_layer=1, n_head=2,
         hidden_dropout=0.0, attention_dropout=0.0),
    text("t5", "T5Config", "T5ForConditionalGeneration", wrap=Both, d_model=32, d_kv=16, d_ff=48,
         num_layers=1, num_heads=2, dropout_rate=0.0),
    text("bart", "BartConfig", "BartForConditionalGeneration", wrap=Both, **SEQ),
    text("marian", "MarianConfig", "MarianMTModel", wrap=Both, pad_token_id=0, **SEQ),
    text("pegasus", "PegasusConfig", "PegasusForConditionalGeneration", wrap=Both, **SEQ),
    ("whisper", whisper),
    ("clip", clip),
    image("vit", "ViTConfig", "ViTForImageClassification"),
    image("deit", "DeiTConfig", "DeiTForImageClassification"),
    image("beit", "BeitConfig", "BeitForImageClassification", use_relative_position_bias=True,
          drop_path_rate=0.0),
    image("swin", "SwinConfig", "SwinForImageClassification", patch_size=4, embed_dim=16,
          depths=[1, 1], num_attention_heads=[2, 2], window_size=4, drop_path_rate=0.0),
    image("swinv2", "Swinv2Config", "Swinv2ForImageClassification", patch_size=4, embed_dim=16,
          depths=[1, 1], num_attention_heads=[2, 2], window_size=4, drop_path_rate=0.0),
    image("convnext_hf", "ConvNextConfig", "ConvNextForImageClassification", hidden_sizes=[8, 16],
          depths=[1, 1], num_stages=2),
    timm("resnet18"),
    timm("efficientnet_b0"),
    timm("convnext_atto"),
    timm("mobilenetv3_small_050"),
    timm("regnetx_002"),
    timm("levit_128s", size=224),
    timm("vit_tiny_patch16_224", size=224),
    timm("swin_tiny_patch4_window7_224", size=224, drop_path_rate=0.0),
    timm("deit_tiny_patch16_224", size=224),
    timm("mixer_s32_224", size=224),
    timm("resmlp_12_224", size=224),
    timm("poolformer_s12"),
    timm("densenet121"),
    timm("repvgg_a0"),
    timm("xcit_nano_12_p16_224", size=224),
    timm("cait_xxs24_224", size=224),
    timm("eva02_tiny_patch14_224", size=224),
    timm("maxvit_rmlp_pico_rw_256", size=256),
    timm("resnetblur18"),
    timm("ghostnet_050"),
]


# What no file tells. This library trains the table that it fills with sinusoids; others fill theirs
# and keep it, and P0229 says which was guessed.
GUESSED = {"distilbert_sinusoids": "position_embeddings"}


def reached(net, inputs):
    """Names of the parameters that a backward pass gives a gradient, tied ones once."""
    net.zero_grad()
    y = net(*inputs)
    y.square().sum().backward()
    return {n for n, p in net.named_parameters() if p.requires_grad and p.grad is not None}


def aliases(net):
    """The first name of every parameter, by each of its names."""
    first, out = {}, {}
    for name, p in net.named_parameters(remove_duplicate=False):
        out[name] = first.setdefault(id(p), name)
    return out


def export(net, inputs, exporter, path):
    names = ["in%d" % i for i in range(len(inputs))]
    if exporter == "ts":
        torch.onnx.export(
            net, inputs, path, dynamo=False, training=TrainingMode.TRAINING,
            do_constant_folding=False, opset_version=17, input_names=names, output_names=["out"],
        )
    else:
        torch.onnx.export(
            net, inputs, path, dynamo=True, optimize=False, opset_version=18, input_names=names,
            output_names=["out"], external_data=False,
        )


def exported(name, build, exporter, folder):
    """(path of the model, what PyTorch trains, first name of every name), or why there is none;
    what `folder` has of an earlier run is taken from there."""
    path, facts = (os.path.join(folder, f"{name}.{exporter}{end}") for end in (".onnx", ".json"))
    if os.path.exists(facts):
        with open(facts) as file:
            return json.load(file)
    torch.manual_seed(0)
    try:
        net, inputs = build()
        net = net.float().train()
        want, first = sorted(reached(net, inputs)), aliases(net)
    except Exception as e:  # a library of another version
        return "no network: " + str(e).split("\n")[0][:120]
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            export(net, inputs, exporter, path)
        found = [path, want, first]
    except Exception as e:
        found = "no export: " + str(e).split("\n")[0][:120]
    with open(facts, "w") as file:
        json.dump(found, file)
    return found


def compare(precast, model, listed):
    path, want, first = model
    run = subprocess.run([precast, "check", "--json", path], capture_output=True, text=True)
    if "panicked" in run.stderr:
        return "PANIC: " + run.stderr[-300:]
    try:
        entry = json.loads(run.stdout)
    except ValueError:
        return "no answer: " + run.stderr[-300:]
    if not entry.get("ok"):
        error = entry.get("errors", [{}])[0]
        return "not imported: %s %s" % (error.get("code"), str(error.get("message"))[:110])
    entry = entry["files"][0]
    have, want = {first.get(n, n) for n in entry["trained"]}, {first.get(n, n) for n in want}
    if listed:
        print("   trained", sorted(have), "\n   buffers", entry["buffers"])
    said = " ".join(sorted(set(re.findall(r"P0[24]\d\d", run.stderr))))
    wrong = []
    if have - want:
        wrong.append("trained and should not be: " + ", ".join(sorted(have - want)[:8]))
    if want - have:
        wrong.append("not trained: " + ", ".join(sorted(want - have)[:8]))
    result = "DIFFERS: " + "; ".join(wrong) if wrong else "ok, %d" % len(have)
    return result + (f"  ({said})" if said else "")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("precast")
    args.add_argument("-e", "--exporter", choices=["ts", "dynamo"])
    args.add_argument("-k", "--keyword", default="")
    args.add_argument("--list", action="store_true")
    args.add_argument("--cache", help="folder that keeps the exported files")
    args = args.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    wrong = 0
    with contextlib.ExitStack() as stack:
        folder = args.cache or stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(folder, exist_ok=True)
        for name, build in NETWORKS:
            if args.keyword not in name:
                continue
            for exporter in [args.exporter] if args.exporter else ["ts", "dynamo"]:
                said = exported(name, build, exporter, folder)
                if not isinstance(said, str):
                    said = compare(os.path.abspath(args.precast), said, args.list)
                guessed = name in GUESSED and GUESSED[name] in said and "P0229" in said
                wrong += said.startswith(("DIFFERS", "PANIC")) and not guessed
                print(f"{name:32} {exporter:7} {said}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
