"""What is seen of traffic: figures, as they leave the workers and as they are told to others."""
