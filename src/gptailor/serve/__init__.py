"""From a predictor to answers over HTTP: batcher, requests, limits, app, run."""
