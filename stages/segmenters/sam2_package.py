"""SAM2 through the package `sam2` of its authors, from the same weights as sam2.py: the extra "sam2".

The package reads pickles, and folders of JPEGs. Here its network is built from the numbers of transformers' config.json
and gets the weights of the same safetensors under its own names; its predictor is given the frames as they are. What it
would do after the network, fill small holes, is left off. The masks are those of sam2.py up to rounding.

Written against sam2 1.1.0; its video predictor needs neither torchvision nor a compiled extension.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Sam2VideoConfig

from ..core.errors import BadInput, MissingPrerequisite
from . import Hint
from .models import PACKAGE_LINE
from .sam2 import WHAT, Pictures, forget, points_of, read, sweep
from .tracks import Job, Track

NEEDS = ("sam2", "hydra", "iopath")
OTHER_WAY = "use --through transformers"
# transformers' names -> the package's; each rule is tried in this order on what the rules before it left
NAMES = tuple((re.compile(old), new) for old, new in (
    (r"^shared_image_embedding\.positional_embedding$",
     "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^(image_encoder\.trunk\.)patch_embed\.projection\.", r"\1patch_embed.proj."),
    (r"^(image_encoder\.trunk\..*)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"^(image_encoder\.trunk\..*\.mlp)\.proj_in\.", r"\1.layers.0."),
    (r"^(image_encoder\.trunk\..*\.mlp)\.proj_out\.", r"\1.layers.1."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^(sam_mask_decoder\.)upscale_conv1\.", r"\1output_upscaling.0."),
    (r"^(sam_mask_decoder\.)upscale_layer_norm\.", r"\1output_upscaling.1."),
    (r"^(sam_mask_decoder\.)upscale_conv2\.", r"\1output_upscaling.3."),
    (r"^(sam_mask_decoder\.transformer\..*)\.o_proj\.", r"\1.out_proj."),
    (r"^(sam_mask_decoder\.transformer\..*mlp)\.proj_in\.", r"\1.layers.0."),
    (r"^(sam_mask_decoder\.transformer\..*mlp)\.proj_out\.", r"\1.layers.1."),
    (r"^(sam_mask_decoder\.transformer\..*)layer_norm", r"\1norm"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^(sam_mask_decoder\..*(?:_head|_mlps\.\d+)|obj_ptr_proj)\.layers\.0\.", r"\1.layers.1."),
    (r"^(sam_mask_decoder\..*(?:_head|_mlps\.\d+)|obj_ptr_proj)\.proj_in\.", r"\1.layers.0."),
    (r"^(sam_mask_decoder\..*(?:_head|_mlps\.\d+)|obj_ptr_proj)\.proj_out\.", r"\1.layers.2."),
    (r"^(memory_attention\..*)\.o_proj\.", r"\1.out_proj."),
    (r"^(memory_attention\..*)layer_norm", r"\1norm"),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"^(memory_encoder\.fuser\..*)\.depthwise_conv\.", r"\1.dwconv."),
    (r"^(memory_encoder\.fuser\..*)\.pointwise_conv(\d)\.", r"\1.pwconv\2."),
    (r"^(memory_encoder\.fuser\..*)\.layer_norm\.", r"\1.norm."),
    (r"^(memory_encoder\.fuser\..*)\.scale$", r"\1.gamma"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj.")))
DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.(?:layers\.(\d+)\.(conv|layer_norm)|final_conv)\.")
TWIN = "prompt_encoder.shared_embedding.positional_embedding"       # the package has one for both
POINTS = "sam_prompt_encoder.point_embed.weight"                    # the package has a layer for each row


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' Sam2VideoModel under the names that the package's SAM2VideoPredictor has."""
    out: dict[str, Tensor] = {}
    layers = 1 + max(int(match[1]) for name in weights if (match := DOWNSAMPLER.match(name)) and match[1])
    for name, tensor in weights.items():
        if name == TWIN:
            continue
        if match := DOWNSAMPLER.match(name):                        # convolution, norm and activation, in one row
            place = 3 * int(match[1]) + (match[2] == "layer_norm") if match[1] else 3 * layers
            name = f"memory_encoder.mask_downsampler.encoder.{place}.{name[match.end():]}"
        for old, new in NAMES:
            name = old.sub(new, name)
        rows = {name.replace("point_embed.", f"point_embeddings.{k}."): tensor[k:k + 1]
                for k in range(len(tensor))} if name == POINTS else {name: tensor}
        assert not out.keys() & rows.keys(), name
        out |= rows
    return out


def unlike(config: Sam2VideoConfig) -> str:
    """What of a config the package has otherwise and no weight shows, in words; "" where it can be built."""
    decoder, trunk = config.mask_decoder_config, config.vision_config.backbone_config
    heads = trunk.num_attention_heads_per_stage
    if list(heads) != [heads[0] * 2 ** stage for stage in range(len(heads))]:
        return f"its attention heads, {list(heads)}, do not double from stage to stage"
    fixed = {"heads of the mask decoder": (decoder.num_attention_heads, 8), "activation": (trunk.hidden_act, "gelu"),
             "activation of the mask decoder": (decoder.hidden_act, "gelu"), "scale of places": (
                 config.prompt_encoder_config.scale, 1)}
    return ", ".join(f"the {name} is {has}, not {needs}" for name, (has, needs) in fixed.items() if has != needs)


def build(config: Sam2VideoConfig) -> nn.Module:
    """The package's predictor with the numbers of a config of transformers, weights at random."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    vision, trunk, decoder = config.vision_config, config.vision_config.backbone_config, config.mask_decoder_config
    width, memory = config.memory_attention_hidden_size, config.memory_encoder_output_channels

    def attention(**more: object) -> nn.Module:
        return RoPEAttention(rope_theta=config.rope_parameters["rope_theta"], embedding_dim=width, dropout=0.0,
                             feat_sizes=config.memory_attention_rope_feat_sizes,
                             num_heads=config.memory_attention_num_attention_heads,
                             downsample_rate=config.memory_attention_downsample_rate, **more)

    encoder = ImageEncoder(
        Hiera(trunk.embed_dim_per_stage[0], trunk.num_attention_heads_per_stage[0], q_pool=trunk.num_query_pool_stages,
              q_stride=tuple(trunk.query_stride), stages=tuple(trunk.blocks_per_stage),
              window_pos_embed_bkg_spatial_size=tuple(trunk.window_positional_embedding_background_size),
              window_spec=tuple(trunk.window_size_per_stage), global_att_blocks=tuple(trunk.global_attention_blocks)),
        FpnNeck(PositionEmbeddingSine(vision.fpn_hidden_size), vision.fpn_hidden_size, vision.backbone_channel_list,
                vision.fpn_kernel_size, vision.fpn_stride, vision.fpn_padding, fpn_interp_model="nearest",
                fpn_top_down_levels=vision.fpn_top_down_levels),
        scalp=len(vision.backbone_channel_list) - vision.num_feature_levels)
    layer = MemoryAttentionLayer(config.memory_attention_feed_forward_hidden_act,
                                 attention(rope_k_repeat=True, kv_in_dim=memory), width,
                                 config.memory_attention_feed_forward_hidden_size, 0.0, False, True, False, attention())
    remember = MemoryEncoder(
        memory, MaskDownSampler(config.mask_downsampler_embed_dim, config.mask_downsampler_kernel_size,
                                config.mask_downsampler_stride, config.mask_downsampler_padding,
                                config.mask_downsampler_total_stride),
        Fuser(CXBlock(config.memory_fuser_embed_dim, config.memory_fuser_kernel_size, config.memory_fuser_padding),
              config.memory_fuser_num_layers), PositionEmbeddingSine(memory), config.memory_encoder_hidden_size)
    signed = config.enable_temporal_pos_encoding_for_object_pointers
    return SAM2VideoPredictor(
        image_encoder=encoder, memory_encoder=remember, num_maskmem=config.num_maskmem, image_size=config.image_size,
        memory_attention=MemoryAttention(width, True, layer, config.memory_attention_num_layers),
        sigmoid_scale_for_mem_enc=config.sigmoid_scale_for_mem_enc,
        sigmoid_bias_for_mem_enc=config.sigmoid_bias_for_mem_enc, max_cond_frames_in_attn=config.max_cond_frame_num,
        max_obj_ptrs_in_encoder=config.max_object_pointers_in_encoder, add_tpos_enc_to_obj_ptrs=signed,
        proj_tpos_enc_in_obj_ptrs=signed, use_signed_tpos_enc_to_obj_ptrs=signed,
        no_obj_embed_spatial=config.enable_occlusion_spatial_embedding,
        multimask_output_in_sam=config.multimask_output_in_sam, multimask_min_pt_num=config.multimask_min_pt_num,
        multimask_max_pt_num=config.multimask_max_pt_num,
        multimask_output_for_tracking=config.multimask_output_for_tracking,
        sam_mask_decoder_extra_args={f"dynamic_multimask_{name}": getattr(decoder, f"dynamic_multimask_{name}")
                                     for name in ("via_stability", "stability_delta", "stability_thresh")},
        **dict.fromkeys(ALWAYS, True))


# what every SAM2 and SAM2.1 has on, and what transformers' port does not ask for
ALWAYS = ("binarize_mask_from_pts_for_mem_enc", "use_mask_input_as_output_without_sam", "directly_add_no_mem_embed",
          "use_high_res_features_in_sam", "iou_prediction_use_sigmoid", "use_obj_ptrs_in_encoder",
          "only_obj_ptrs_in_the_past_for_eval", "pred_obj_scores", "pred_obj_scores_mlp", "fixed_no_obj_ptr",
          "use_multimask_token_for_obj_ptr", "use_mlp_for_obj_ptr_proj")


class Sam2Package:
    """Holds the predictor."""

    def __init__(self, name: str, device: str) -> None:
        if absent := [module for module in NEEDS if find_spec(module) is None]:
            raise MissingPrerequisite(f"the package sam2 is not installed, or not all it needs ({', '.join(absent)})",
                                      f"Run: {PACKAGE_LINE}; or use --through transformers")
        network, self.prepare, folder = read(name, "cpu")
        if other := unlike(network.config):
            raise BadInput(f"{WHAT} in {folder} is none that the package sam2 can hold: {other}", OTHER_WAY)
        self.predictor, self.device = build(network.config), device
        own, weights = self.predictor.state_dict(), renamed(network.state_dict())
        wrong = sorted(key for key in own.keys() | weights.keys()
                       if key not in own or key not in weights or own[key].shape != weights[key].shape)
        if wrong:
            raise BadInput(f"{WHAT} in {folder} is none that the package sam2 can hold: {len(wrong)} of its weights do "
                           f"not fit, {wrong[0]} first", OTHER_WAY)
        self.predictor.load_state_dict(weights)
        self.predictor.to(device).eval().requires_grad_(False)

    def track(self, frames: np.ndarray, jobs: Sequence[Job]) -> list[Track]:
        """frames: uint8 (F, H, W, 3)."""
        pictures, features = Pictures(frames, self.prepare), {}
        return sweep(jobs, lambda: _Session(self.predictor, pictures, features, torch.device(self.device)))


class _State(dict):
    """What the package knows of one thing. The features of the picture looked at last are shared with other things."""

    def __setitem__(self, name: str, value: object) -> None:
        if name == "cached_features":
            self[name].clear()
            self[name].update(value)
        else:
            super().__setitem__(name, value)


class _Session:
    """Through the package: what its init_state makes, but for pictures that are prepared when they are asked for."""

    def __init__(self, predictor: nn.Module, pictures: Pictures, features: dict, device: torch.device) -> None:
        self.predictor, self.size = predictor, pictures.size
        self.state = _State(
            images=pictures, num_frames=len(pictures), video_height=self.size[0], video_width=self.size[1],
            offload_video_to_cpu=True, offload_state_to_cpu=False, device=device, storage_device=device,
            cached_features=features, obj_ids=[], **{name: {} for name in (
                "point_inputs_per_obj", "mask_inputs_per_obj", "constants", "obj_id_to_idx", "obj_idx_to_id",
                "output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj")})
        self.reach = max(predictor.num_maskmem, predictor.max_obj_ptrs_in_encoder)

    def prompt(self, hint: Hint) -> None:
        points, labels = points_of(hint, self.size, 1)
        self.predictor.add_new_points_or_box(self.state, hint.frame, 0, points, labels, normalize_coords=False)
        self.predictor.propagate_in_video_preflight(self.state)

    @torch.inference_mode()
    def step(self, frame: int, backward: bool) -> tuple[Tensor, float]:
        """What its propagate_in_video does for one frame, which draws a progress bar."""
        outputs = self.state["output_dict_per_obj"][0]
        out = outputs["cond_frame_outputs"].get(frame)
        if out is None:
            out, _ = self.predictor._run_single_frame_inference(
                self.state, outputs, frame, batch_size=1, is_init_cond_frame=False, point_inputs=None, mask_inputs=None,
                reverse=backward, run_mem_encoder=True)
            outputs["non_cond_frame_outputs"][frame] = out
        return out["pred_masks"][0, 0], float(out["object_score_logits"].flatten()[0])

    def forget(self, frame: int) -> None:
        forget(self.state["output_dict_per_obj"][0], frame, self.reach)
