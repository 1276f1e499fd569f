"""Trains a LoRA on a dataset's caches."""

from __future__ import annotations

import logging

from musubi_tuner.training.parser_common import read_config_from_file, setup_parser
from musubi_tuner.training.trainer_base import NetworkTrainer

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)


def main() -> None:
    """Runs the script."""
    parser = setup_parser()
    args = read_config_from_file(parser.parse_args(), parser)
    if args.vae_dtype is not None:
        logger.warning("vae_dtype is not used in Z-Image architecture (always float32)")
    NetworkTrainer(args).train()


if __name__ == "__main__":
    main()
