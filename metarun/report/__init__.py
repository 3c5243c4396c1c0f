"""`mode=report`: what finished runs came to, side by side, from the files in their folders; without torch."""
