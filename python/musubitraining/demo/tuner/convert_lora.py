"""Root script, as a Musubi Tuner clone has it."""

from musubi_tuner.convert_lora import main

if __name__ == "__main__":
    main()
