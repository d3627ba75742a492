"""How good the stream is: the accuracy matrix, every metric, baselines and the certificate."""
