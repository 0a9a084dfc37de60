"""From a bundle to answers: predictor, batcher, HTTP."""
