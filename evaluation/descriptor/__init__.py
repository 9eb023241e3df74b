"""The learned near-duplicate descriptor: trained by `train-descriptor`, used where perceptual hashes of whole pictures find nothing."""
