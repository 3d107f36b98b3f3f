"""How interactions are divided into shards."""
