"""`mode=report`: compare the results of finished runs, read from their run folders; does not import torch."""
