"""Tiny Grounding DINO and SAM2 with random weights in exactly the layout of IDEA-Research/grounding-dino-tiny and
facebook/sam2.1-hiera-tiny: names of files, keys of configs, and the names that weights have in their safetensors, which
transformers 4.40 and 4.56 wrote."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
)

DINO, SAM2 = "IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-tiny"
SIDE = 128                                      # of SAM2's pictures
WORDS = ("the", "a", "person", "horse", "dog", "cat", "car", "red", "blue", "tall", "small", "robot", "on", "with",
         "hat", "man", "walk", "##s", "##ing", "##et")
SPREAD = 0.2                                    # of the weights: boxes and words differ, and nothing is certain
COLOURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def clip(count: int = 6, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    """Blocks of colour that change from frame to frame: uint8 (F, H, W, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 255, (count, height // 4, width // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


def frames_prepared(tracker, module, monkeypatch) -> list[int]:
    """The frames that a tracker prepares for three things that begin in frames 4, 4 and 9 of 12, in its order. module:
    where the tracker's Pictures are."""
    from stages.segmenters.tracks import Hint, Job

    seen: list[int] = []

    class Counted(module.Pictures):
        def __getitem__(self, frame):
            seen.append(frame)
            return super().__getitem__(frame)

    monkeypatch.setattr(module, "Pictures", Counted)
    tracker.track(clip(12), [Job((Hint("a", frame, (10, 10, 40, 40)),), 0, 11) for frame in (4, 4, 9)])
    return seen


def with_and_without_memory_lost(tracker, module, monkeypatch) -> tuple[int, np.ndarray, np.ndarray]:
    """How many frames are remembered at most of 60, the logits then, and those of a tracker that forgets nothing."""
    from stages.segmenters.tracks import Hint, Job

    kept, forget, jobs = [], module.forget, [Job((Hint("a", 30, (10, 10, 40, 40)),), 0, 59)]

    def counted(outputs, frame, reach):
        forget(outputs, frame, reach)
        kept.append(sum(map(len, outputs.values())))

    monkeypatch.setattr(module, "forget", counted)
    (short,) = tracker.track(clip(60), jobs)
    monkeypatch.setattr(module, "forget", lambda *_: None)
    (whole,) = tracker.track(clip(60), jobs)
    return max(kept), short.logits, whole.logits


def grounding_dino(folder: Path, *, seed: int = 0, **more: int) -> Path:
    """With tokenizer.json, vocab.txt and the files beside them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GroundingDinoForObjectDetection(dino_config(**more))
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1 and "bbox_embed" not in name:     # sharper than a fresh network: boxes and words differ
                tensor.data.normal_(std=SPREAD)
        for head in (*model.bbox_embed, model.model.encoder_output_bbox_embed):
            head.layers[-1].bias.data[2:] = 1.5                  # boxes that one can see
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        tensors = {name: tensor for name, tensor in load_file(path).items() if ".swin.layernorm." not in name}
        depths = model.config.backbone_config.depths
        for stage, block in ((s, b) for s, depth in enumerate(depths) for b in range(depth)):
            name = (f"model.backbone.conv_encoder.model.encoder.layers.{stage}.blocks.{block}.attention.self."
                    "relative_position_index")
            side = model.config.backbone_config.window_size ** 2
            tensors[name] = torch.zeros(side, side, dtype=torch.long)
        save_file(tensors, path, metadata={"format": "pt"})
    write_config(folder, "4.40.0.dev0", backbone=None, backbone_kwargs=None, use_pretrained_backbone=False,
                 use_timm_backbone=False)
    write_bert_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_convert_annotations": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "format": "coco_detection", **COLOURS, "image_processor_type": "GroundingDinoImageProcessor",
        "processor_class": "GroundingDinoProcessor", "resample": 2, "rescale_factor": 1 / 255,
        "size": {"longest_edge": 96, "shortest_edge": 64}}))
    return folder


def dino_config(**more: int) -> GroundingDinoConfig:
    small = dict(d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                 encoder_attention_heads=2, decoder_attention_heads=2)
    return GroundingDinoConfig(
        backbone_config=SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4],
                                   window_size=4, out_indices=[2, 3, 4]),
        text_config=BertConfig(vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=32), **{**small, **more})


def write_bert_tokenizer(folder: Path) -> None:
    """The ids of bert-base-uncased where they matter: 101 [CLS], 102 [SEP], 1012 and 1029 the ends of phrases."""
    from transformers import BertTokenizer

    placed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1010: ",", 1011: "-", 1012: ".",
              1029: "?", **{1030 + k: word for k, word in enumerate(WORDS)}}
    vocab = [placed.get(k, f"[unused{k}]") for k in range(1030 + len(WORDS))]
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]",
               "unk_token": "[UNK]"}
    BertTokenizer(vocab={word: k for k, word in enumerate(vocab)}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "clean_up_tokenization_spaces": True, "do_lower_case": True, "model_max_length": 512, "strip_accents": None,
        "processor_class": "GroundingDinoProcessor", "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
        **special}))


def sam2(folder: Path, *, seed: int = 1, twins: bool = False, in_sight: float = 1.0,
         heads: tuple[int, ...] = (1, 2, 4, 8)) -> Path:
    """twins: with both of the two equal embeddings, as transformers 5 writes them; 4.56 kept one. in_sight: what is
    added to the score of an object's being there; a fresh network is undecided. heads: of attention, in each stage."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam2VideoModel(sam2_config(heads))
        for name, tensor in model.named_parameters():
            if "norm" in name:
                continue
            width = tensor[0].numel() if tensor.ndim > 1 and "embed" not in name else 1
            tensor.data.normal_(std=width ** -0.5 if tensor.ndim > 1 or name.endswith("scale") else 0.1)
        model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(in_sight)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    model.save_pretrained(folder)
    if not twins:
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        del tensors["prompt_encoder.shared_embedding.positional_embedding"]
        save_file(tensors, path, metadata={"format": "pt"})
    write_config(folder, "4.56.0.dev0", memory_attention_rope_theta=10000)
    common = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, **COLOURS,
              "do_center_crop": None, "crop_size": None, "default_to_square": True, "resample": 2,
              "rescale_factor": 1 / 255, "size": {"height": SIDE, "width": SIDE}, "processor_class":
              "Sam2VideoProcessor"}
    side = SIDE // 4
    (folder / "preprocessor_config.json").write_text(json.dumps({
        **common, "image_processor_type": "Sam2ImageProcessorFast", "mask_size": {"height": side, "width": side}}))
    (folder / "video_preprocessor_config.json").write_text(json.dumps({
        **common, "video_processor_type": "Sam2VideoVideoProcessor", "return_metadata": False}))
    (folder / "processor_config.json").write_text(json.dumps({
        "point_pad_value": -10, "processor_class": "Sam2VideoProcessor", "target_size": SIDE}))
    (folder / "sam2.1_hiera_tiny.pt").write_bytes(b"a pickle that nobody reads")
    (folder / "sam2.1_hiera_t.yaml").write_text("# @package _global_\n")
    return folder


def sam2_config(heads: tuple[int, ...] = (1, 2, 4, 8)) -> Sam2VideoConfig:
    trunk = Sam2HieraDetConfig(
        hidden_size=8, embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=list(heads),
        blocks_per_stage=[1, 1, 2, 1], global_attention_blocks=[3], image_size=[SIDE, SIDE],
        window_positional_embedding_background_size=[4, 4], window_size_per_stage=[8, 4, 4, 2])
    vision = Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=[64, 32, 16, 8],
                              backbone_feature_sizes=[[SIDE // k, SIDE // k] for k in (4, 8, 16)])
    return Sam2VideoConfig(
        vision_config=vision, image_size=SIDE, prompt_encoder_config={"image_size": SIDE},
        memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[SIDE // 16, SIDE // 16])


def write_config(folder: Path, version: str, **old: object) -> None:
    """The keys that the versions wrote then."""
    path = folder / "config.json"
    said = json.loads(path.read_text())
    said["torch_dtype"] = said.pop("dtype", "float32")
    path.write_text(json.dumps({**said, **old, "transformers_version": version}, indent=2))
