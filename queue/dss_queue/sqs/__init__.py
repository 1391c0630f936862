"""The SQS endpoint: the queue for programs that speak the JSON protocol of Amazon SQS. See `port.py` and docs/reference/sqs.md."""
