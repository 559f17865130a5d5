"""Metadata of the distribution and the command `anyrank`; tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

EXTRAS = {
    "tensorboard": ["tensorboard>=2.15,<3"],
    "wandb": ["wandb>=0.17,<1"],
    "report": ["matplotlib>=3.8,<4"],
    "kernels": ["liger-kernel>=0.8.5,<0.9; platform_system == 'Linux'"],
}
EXTRAS["test"] = [
    *EXTRAS["kernels"],
    *EXTRAS["tensorboard"],
    *EXTRAS["report"],
    "hypothesis>=6.100,<7",
    "mistral-common>=1.8,<2",
    "mypy>=1.11,<3",
    "pytest>=8,<10",
    "ruff>=0.11,<0.18",
]

setup(
    name="anyrank",
    version="0.1.0",
    description="Fine-tune a language model on any number of GPUs by changing one number",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["train", "train.*"]),
    install_requires=[
        "accelerate>=1.1,<2",
        "datasets>=4,<6",
        "deepspeed>=0.19,<0.20",
        "jinja2>=3.1,<4",
        "ninja>=1.11,<2",
        "numpy>=1.26,<3",
        "peft>=0.17,<0.22",
        "safetensors>=0.5,<0.9",
        "protobuf>=4,<8",
        "sentencepiece>=0.2.3,<0.3",
        "tokenizers>=0.22,<0.24",
        "torch>=2.11,<2.14",
        "tqdm>=4.66,<5",
        "transformers>=5,<6",
        "xxhash>=3.4,<5",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["anyrank = train.cli:main"]},
)
