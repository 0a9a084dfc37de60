"""From models to answers over HTTP: queues, requests, limits, shapes, app, run."""
