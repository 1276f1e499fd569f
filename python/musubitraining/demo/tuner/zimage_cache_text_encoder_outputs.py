"""Root script, as a Musubi Tuner clone has it."""

from musubi_tuner.zimage_cache_text_encoder_outputs import main

if __name__ == "__main__":
    main()
