"""What a caption and a picture are: cleaning and the one normal form, safe decoding, hashes with their versions."""
