"""What a `LabeledGenerator` schedules: latents -> image, labels and, where there is one, uncertainty."""
