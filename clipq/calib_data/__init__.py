"""Images in: sources, preprocessing, sampling and the leak check."""
