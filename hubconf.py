"""Entry points for torch.hub: every factory of poster_zoo, nothing else."""

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors", "PIL", "numpy", "tqdm"]

from poster_zoo import (  # noqa: E402, F401
    centerface,
    ir50,
    mobilefacenet,
    poster,
    poster_affectnet7,
    poster_affectnet8,
    poster_base,
    poster_baseline,
    poster_ferplus,
    poster_rafdb,
    poster_small,
    poster_tiny,
    poster_tiny_baseline,
    poster_tiny_image,
    poster_v2,
    poster_v2_affectnet7,
    poster_v2_affectnet8,
    poster_v2_caers,
    poster_v2_rafdb,
)
